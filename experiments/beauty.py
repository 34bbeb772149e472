"""SASRec on Amazon Beauty: reviews, brands and categories.

Paper     Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
          Content-Based Initialization, RecSys 2025 (doi 10.1145/3705328.3748038), Table 2
Data      in $JAXCOLD_DATA/amazon-beauty, one of
          - the 5-core reviews of 2014, reviews_Beauty_5.parquet (user, item, rating, timestamp),
            with MODE_feat.npy (E5 embeddings of the items' text in the paper) and item_ids.txt
            that names the item of each row: the paper's global temporal split
          - amazon-beauty.inter (22,363 users, 12,101 items, 198,502 pairs in the order of each
            user, without a clock) with text_feat.npy, or Beauty.txt, the same sequences as
            published with S3-Rec (CIKM 2020): --config.data.protocol=random_cold, or
            leave_one_out for the benchmark of eSASRec (RecSys 2025)
Published https://jmcauley.ucsd.edu/data/amazon/links.html
Command   python -m experiments.main --config=experiments/beauty.py --workdir=runs/beauty
          after the colon: sasrec, sasrec_content, sasrec_frozen, sasrec_delta, esasrec,
          esasrec_delta, content_knn; or semco, on the training users of a sequential run
          (--config.data.split_file=RUN/split.npz), whose embeddings
          --config.data.item_content=WORKDIR gives to SASRec
Expected  test, all items compete, mean of five runs in the paper (HR@10 | NDCG@10, each for cold
          targets, warm ones, all):
          content-KNN       .043 .044 .044 | .022 .024 .024
          SASRec            .000 .072 .054 | .000 .043 .033
          SASRec + content  .032 .088 .074 | .018 .053 .044
          SASRec + delta    .038 .092 .078 | .022 .054 .046
          leave_one_out, test, all items compete, as the benchmark reports (NDCG@10 | Recall@10):
          SASRec, sampled softmax   .0531 | .0921
          eSASRec                   .0523 | .0928
"""

from ml_collections import config_dict

from experiments import config


def get_config(
    model: str = "sasrec_delta", kinds: tuple[str, ...] = ("sequences", "pairs")
) -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields, and `kinds`."""
    c = config.get_config(model, dataset="amazon-beauty", about=__doc__ or "", kinds=kinds)
    c.data.published = "https://jmcauley.ucsd.edu/data/amazon/links.html"
    if c.data.kind == "pairs":
        c.data.duplicates = "drop"  # a user may have an item twice
        c.data.allow_unused = True
    return c
