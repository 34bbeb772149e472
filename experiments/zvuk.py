"""SASRec on Zvuk: music, with audio embeddings.

Paper     Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
          Content-Based Initialization, RecSys 2025 (doi 10.1145/3705328.3748038), Table 2
Data      9,076 users, 131,085 items, 3,236,653 interactions: plays longer than 60 s of 10,000 users
          drawn at random. In $JAXCOLD_DATA/zvuk: zvuk-interactions.parquet, and MODE_feat.npy with
          item_ids.txt that names the track of each row, made from the published embeddings
Published https://www.kaggle.com/datasets/alexxl/zvuk-dataset
Command   python -m experiments.main --config=experiments/zvuk.py --workdir=runs/zvuk
          after the colon: sasrec, sasrec_content, sasrec_frozen, sasrec_delta, content_knn
Expected  test, all items compete, mean of five runs in the paper (HR@10 | NDCG@10, each for cold
          targets, warm ones, all):
          content-KNN       .009 .000 .001 | .006 .000 .001
          SASRec            .000 .094 .082 | .000 .063 .055
          SASRec + content  .023 .088 .080 | .014 .058 .052
          SASRec + delta    .034 .094 .087 | .021 .060 .055
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "sasrec_delta") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="zvuk", about=__doc__ or "", kinds=("sequences",))
    c.data.layout = "zvuk"
    c.data.published = "https://www.kaggle.com/datasets/alexxl/zvuk-dataset"
    return c
