"""SEMCo on Music4All-Onion.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990), Table 2
Data      onion.inter (8,807 users, 43,886 items, 1,510,034 pairs), audio_feat.npy
          [43886, 1024] (MusicFM) and text_feat.npy [43886, 768] (BERT on lyrics), in
          $JAXCOLD_DATA/onion. Made from the listening events: drop songs skipped within 30 s;
          year 2018; ages 10 to 80; drop pairs that occur once; 5-core.
Published Music4All-Onion and its LFM-2b listening events, https://zenodo.org/records/6609677
Command   python -m experiments.main --config=experiments/onion.py --workdir=runs/onion
Expected  cold test, all cold items compete, mean of five runs in the paper:
          softmax    Recall@20 0.0777  NDCG@20 0.0743  MDG@20 0.0237  Gini 0.4638
          entmax15   Recall@20 0.0825  NDCG@20 0.0792  MDG@20 0.0251  Gini 0.4915
          sparsemax  Recall@20 0.0806  NDCG@20 0.0772  MDG@20 0.0246  Gini 0.4939
          Choose the map with --config.model.alpha=1, 1.5 or 2 (the default).
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="onion", about=__doc__ or "")
    c.data.modes = ("audio", "text")
    c.data.published = "https://zenodo.org/records/6609677 (filter as below)"
    return c
