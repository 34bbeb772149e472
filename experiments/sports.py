"""SASRec on Amazon Sports and Outdoors: 5-core sequences, leave-one-out.

Paper     eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, RecSys 2025,
          whose benchmark takes the data and the split of S3-Rec (CIKM 2020)
Data      35,598 users, 18,357 items, 296,337 interactions, in the order of each user without a
          clock; in $JAXCOLD_DATA/amazon-sports, one of
          - Sports_and_Outdoors.txt, as published with S3-Rec; it is downloaded if nothing is there
          - amazon-sports.inter (tab separated, userID itemID rating timestamp, ids from 0)
          either with MODE_feat.npy (row i is item i, counted from 0) for the methods with content
Published https://github.com/aHuiWang/CIKM2020-S3Rec/tree/master/data
Command   python -m experiments.main --config=experiments/sports.py --workdir=runs/sports
          after the colon: sasrec, esasrec; with content also sasrec_content, sasrec_frozen,
          sasrec_delta, esasrec_delta, content_knn
Expected  test, all items compete, as the benchmark reports (NDCG@10 | Recall@10):
          SASRec, sampled softmax   .0314 | .0569
          eSASRec                   .0323 | .0560
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "sasrec") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="amazon-sports", about=__doc__ or "", kinds=("sequences",))
    c.data.published = "https://github.com/aHuiWang/CIKM2020-S3Rec/tree/master/data"
    c.data.protocol = "leave_one_out"
    return c
