"""SEMCo on MicroLens.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990), Table 2
Data      microlens.inter (98,129 users, 17,228 items, 705,174 pairs), image_feat.npy
          [17228, 1024], text_feat.npy [17228, 1024] and video_feat.npy [17228, 768], in
          $JAXCOLD_DATA/microlens.
Published with MMRec, https://github.com/enoche/MMRec (folder data links the files)
Command   python -m experiments.main --config=experiments/microlens.py --workdir=runs/microlens
Expected  cold test, all cold items compete, mean of five runs in the paper:
          softmax    Recall@20 0.1336  NDCG@20 0.0590  MDG@20 0.0504  Gini 0.5409
          entmax15   Recall@20 0.1372  NDCG@20 0.0600  MDG@20 0.0511  Gini 0.6155
          sparsemax  Recall@20 0.1332  NDCG@20 0.0594  MDG@20 0.0488  Gini 0.6052
          Choose the map with --config.model.alpha=1, 1.5 or 2 (the default).
"""

from ml_collections import config_dict

from experiments import config as base

# Temperature and L2 of the authors' published scripts; they belong to gradient="autodiff".
TUNED = {
    "autodiff": {
        "softmax": (0.2, 0.0001),
        "entmax15": (2.5, 0.001),
        "sparsemax": (14.0, 0.0),
    },
}

# The student's values in the authors' published scripts.
OFFLINE = {
    "softmax": {"lam": 0.5, "omega": 0.3, "tau": 0.4, "positives": 15},
    "entmax15": {"lam": 2.0, "omega": 4.0, "tau": 4.0, "positives": 5},
    "sparsemax": {"lam": 2.0, "omega": 16.0, "tau": 16.0, "positives": 5},
}
ONLINE = {
    "entmax15": {
        "lam": 0.1,
        "l2": 0.0,
        "ema": 0.9,
        "omega": 3.5,
        "tau": 4.0,
        "epochs": 25,
        "warmup_epochs": 1,
        "positives": 5,
        "teacher_tau": 3.5,
    },
    "sparsemax": {
        "lam": 5.0,
        "l2": 0.0005,
        "ema": 0.0,
        "omega": 12.0,
        "tau": 20.0,
        "epochs": 15,
        "warmup_epochs": 1,
        "positives": 5,
        "teacher_tau": 12.0,
    },
}


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; see `experiments.config` for every field."""
    config = base.get_config(
        model, dataset="microlens", about=__doc__ or "", tuned=TUNED, offline=OFFLINE, online=ONLINE
    )
    config.data.modes = ("image", "text", "video")
    config.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return config
