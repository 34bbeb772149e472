"""SEMCo on Amazon Electronics.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990), Table 2
Data      elec.inter (192,403 users, 63,001 items, 1,689,188 pairs), image_feat.npy
          [63001, 4096] and text_feat.npy [63001, 384], in $JAXCOLD_DATA/elec.
Published with MMRec, https://github.com/enoche/MMRec (folder data links the files)
Command   python -m experiments.main --config=experiments/electronics.py --workdir=runs/electronics
Expected  cold test, all cold items compete, mean of five runs in the paper:
          softmax    Recall@20 0.0462  NDCG@20 0.0210  MDG@20 0.0195  Gini 0.6381
          entmax15   Recall@20 0.0458  NDCG@20 0.0211  MDG@20 0.0198  Gini 0.6749
          sparsemax  Recall@20 0.0481  NDCG@20 0.0217  MDG@20 0.0194  Gini 0.6233
          Choose the map with --config.model.alpha=1, 1.5 or 2 (the default).
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="electronics", about=__doc__ or "")
    c.data.modes = ("image", "text")
    c.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return c
