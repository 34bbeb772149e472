"""SASRec on Amazon-M2, French sessions of the KDD Cup 2023.

Paper     Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
          Content-Based Initialization, RecSys 2025 (doi 10.1145/3705328.3748038), Table 2
Data      129,983 sessions, 44,049 items, 566,806 interactions. In
          $JAXCOLD_DATA/amazon-m2: sessions_train.csv, sessions_test_task2_phase1.csv and
          ground_truth/phase1/gt_task2.csv of the competition, and
          MODE_feat.npy (E5 embeddings of the products' text in the paper) with item_ids.txt that
          names the item of each row; test is the competition's task 2, phase 1
Published https://kddcup23.github.io
Command   python -m experiments.main --config=experiments/amazon_m2.py --workdir=runs/m2
          after the colon: sasrec, sasrec_content, sasrec_frozen, sasrec_delta, content_knn
Expected  test, all items compete, mean of five runs in the paper (HR@10 | NDCG@10, each for cold
          targets, warm ones, all):
          content-KNN       .454 .383 .388 | .312 .232 .238
          SASRec            .000 .610 .567 | .000 .438 .407
          SASRec + content  .435 .620 .607 | .297 .448 .438
          SASRec + delta    .509 .617 .609 | .359 .446 .440
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "sasrec_delta") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="amazon-m2", about=__doc__ or "", kinds=("sequences",))
    c.data.layout = "amazon_m2"
    c.data.published = "https://kddcup23.github.io"
    return c
