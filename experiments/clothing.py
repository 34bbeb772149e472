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

from experiments import config as base

# Temperature and L2 of the authors' published scripts; they belong to gradient="autodiff".
TUNED = {
    "autodiff": {
        "softmax": (0.2, 0.005),
        "entmax15": (2.5, 0.005),
        "sparsemax": (12.0, 0.001),
    },
}

# The student's values in the authors' published scripts.
OFFLINE = {
    "softmax": {"lam": 1.0, "omega": 0.1, "tau": 0.3, "positives": 15},
    "entmax15": {"lam": 1.0, "omega": 1.5, "tau": 4.0, "positives": 10},
    "sparsemax": {"lam": 5.0, "omega": 6.0, "tau": 16.0, "positives": 5},
}
ONLINE = {
    "entmax15": {
        "lam": 1.0,
        "l2": 0.0001,
        "ema": 0.0,
        "omega": 3.0,
        "tau": 4.0,
        "epochs": 15,
        "warmup_epochs": 5,
        "positives": 5,
        "teacher_tau": 2.5,
    },
    "sparsemax": {
        "lam": 5.0,
        "l2": 0.0001,
        "ema": 0.9,
        "omega": 6.0,
        "tau": 16.0,
        "epochs": 25,
        "warmup_epochs": 1,
        "positives": 10,
        "teacher_tau": 14.0,
    },
}


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; see `experiments.config` for every field."""
    config = base.get_config(
        model, dataset="clothing", about=__doc__ or "", tuned=TUNED, offline=OFFLINE, online=ONLINE
    )
    config.data.modes = ("text",)
    config.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return config
