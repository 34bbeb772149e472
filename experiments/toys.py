"""SASRec on Amazon Toys and Games: 5-core sequences, leave-one-out.

Paper     eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, RecSys 2025,
          whose benchmark takes the data and the split of S3-Rec (CIKM 2020)
Data      19,412 users, 11,924 items, 167,597 interactions, in the order of each user without a
          clock; in $JAXCOLD_DATA/amazon-toys, one of
          - Toys_and_Games.txt, as published with S3-Rec; it is downloaded if nothing is there
          - amazon-toys.inter (tab separated, userID itemID rating timestamp, ids from 0)
          either with MODE_feat.npy (row i is item i, counted from 0) for the methods with content
Published https://github.com/aHuiWang/CIKM2020-S3Rec/tree/master/data
Command   python -m experiments.main --config=experiments/toys.py --workdir=runs/toys
          after the colon: sasrec, esasrec; with content also sasrec_content, sasrec_frozen,
          sasrec_delta, esasrec_delta, content_knn
Expected  test, all items compete, as the benchmark reports (NDCG@10 | Recall@10):
          SASRec, sampled softmax   .0580 | .0970
          eSASRec                   .0538 | .0939
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "sasrec") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="amazon-toys", about=__doc__ or "", kinds=("sequences",))
    c.data.published = "https://github.com/aHuiWang/CIKM2020-S3Rec/tree/master/data"
    c.data.protocol = "leave_one_out"
    return c
