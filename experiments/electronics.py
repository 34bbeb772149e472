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

from experiments import config as base

# Temperature and L2 of the authors' published scripts; they belong to gradient="autodiff".
TUNED = {
    "autodiff": {
        "softmax": (0.15, 0.01),
        "entmax15": (2.0, 0.001),
        "sparsemax": (12.0, 0.0001),
    },
}

# The student's values in the authors' published scripts.
OFFLINE = {
    "softmax": {"lam": 1.0, "omega": 0.3, "tau": 0.3, "positives": 15},
    "entmax15": {"lam": 2.0, "omega": 2.5, "tau": 3.0, "positives": 5},
    "sparsemax": {"lam": 5.0, "omega": 6.0, "tau": 18.0, "positives": 5},
}
ONLINE = {
    "entmax15": {
        "lam": 0.1,
        "l2": 0.0001,
        "ema": 0.5,
        "omega": 4.0,
        "tau": 3.5,
        "epochs": 20,
        "warmup_epochs": 5,
        "positives": 15,
        "teacher_tau": 2.5,
    },
    "sparsemax": {
        "lam": 2.0,
        "l2": 1e-05,
        "ema": 0.5,
        "omega": 14.0,
        "tau": 8.0,
        "epochs": 25,
        "warmup_epochs": 1,
        "positives": 5,
        "teacher_tau": 16.0,
    },
}


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; see `experiments.config` for every field."""
    config = base.get_config(
        model, dataset="elec", about=__doc__ or "", tuned=TUNED, offline=OFFLINE, online=ONLINE
    )
    config.data.modes = ("image", "text")
    config.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return config
