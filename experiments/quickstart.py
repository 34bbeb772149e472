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

from experiments import base

TUNED = {
    "autodiff": {"softmax": (0.25, 1e-4)},
    "fenchel_young": {"entmax15": (2.5, 1e-4), "sparsemax": (6.0, 1e-4)},
}


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; see `experiments.base` for every field."""
    config = base.get_config(model, dataset="synthetic", about=__doc__ or "", tuned=TUNED)
    config.seeds = (0, 1, 2)
    config.model.gradient = "fenchel_young"
    config.train.epochs = 10
    config.train.batch_size = 512
    return config
