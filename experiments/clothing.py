"""SEMCo on Amazon Clothing.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990), Table 2
Data      clothing.inter (39,387 users, 23,033 items, 278,677 pairs) and text_feat.npy
          [23033, 384], in $JAXCOLD_DATA/clothing. The visual features are left out, as in the
          paper.
Published with MMRec, https://github.com/enoche/MMRec (folder data links the files)
Command   python -m experiments.main --config=experiments/clothing.py --workdir=runs/clothing
Expected  cold test, all cold items compete, mean of five runs in the paper:
          softmax    Recall@20 0.1408  NDCG@20 0.0684  MDG@20 0.0555  Gini 0.6316
          entmax15   Recall@20 0.1435  NDCG@20 0.0697  MDG@20 0.0567  Gini 0.6694
          sparsemax  Recall@20 0.1432  NDCG@20 0.0699  MDG@20 0.0572  Gini 0.6841
          Choose the map with --config.model.alpha=1, 1.5 or 2 (the default).
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="clothing", about=__doc__ or "")
    c.data.modes = ("text",)
    c.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return c
