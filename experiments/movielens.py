"""SASRec on MovieLens 100K, films with their titles and genres.

Paper     Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
          Content-Based Initialization, RecSys 2025 (doi 10.1145/3705328.3748038): the
          method; the paper has
          no MovieLens
Data      943 users, 1,682 films, 100,000 ratings with their times: ml-100k.inter (tab separated,
          userID itemID rating timestamp, ids from 0) and text_feat.npy in $JAXCOLD_DATA/ml-100k
Published https://grouplens.org/datasets/movielens/100k/
Command   python -m experiments.main --config=experiments/movielens.py --workdir=runs/movielens
          after the colon: sasrec, sasrec_content, sasrec_frozen, sasrec_delta, content_knn
Expected  15 of the 166 test targets are cold: a check that everything runs, not a benchmark
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "sasrec_delta") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="ml-100k", about=__doc__ or "", kinds=("sequences",))
    c.data.published = "https://grouplens.org/datasets/movielens/100k/"
    return c
