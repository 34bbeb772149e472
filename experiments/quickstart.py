"""SEMCo on the embedded data set: what ./run.sh runs.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990): the method, not the data
Data      none needed: 2,000 users, 1,500 items and two content modes are generated from a latent
          model whose best possible ranking is known
Published in the package, jaxcold.data.synthetic
Command   python -m experiments.main --config=experiments/quickstart.py --workdir=runs/quickstart
Expected  see README.md
"""

from ml_collections import config_dict

from experiments import config as base

TUNED = {
    "autodiff": {"softmax": (0.25, 1e-4)},
    "fenchel_young": {"entmax15": (2.5, 1e-4), "sparsemax": (6.0, 1e-4)},
}

# Not tuned: the base model's temperatures.
OFFLINE = {
    "entmax15": {"lam": 1.0, "omega": 2.5, "tau": 2.5, "positives": 5},
    "sparsemax": {"lam": 1.0, "omega": 6.0, "tau": 6.0, "positives": 5},
}
ONLINE = {
    "sparsemax": {
        "lam": 1.0,
        "l2": 0.0001,
        "ema": 0.5,
        "omega": 6.0,
        "tau": 6.0,
        "epochs": 10,
        "warmup_epochs": 1,
        "positives": 5,
        "teacher_tau": 6.0,
    },
}


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; see `experiments.config` for every field."""
    config = base.get_config(
        model,
        dataset="synthetic",
        about=__doc__ or "",
        tuned=TUNED,
        offline=OFFLINE,
        online=ONLINE,
        distilled_gradient="fenchel_young",
    )
    config.seeds = (0, 1, 2)
    config.model.gradient = "fenchel_young"
    config.train.epochs = 10
    config.train.batch_size = 512
    return config
