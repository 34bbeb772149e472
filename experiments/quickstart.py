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

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="synthetic", about=__doc__ or "")
    c.seeds = (0, 1, 2)
    return c
