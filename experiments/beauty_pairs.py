"""Amazon Beauty as pairs of users and items, for methods that take pairs as well as sequences.

Data      see experiments/beauty.py: amazon-beauty.inter with text_feat.npy; 20 % of the items are
          cold, drawn at random
Published https://jmcauley.ucsd.edu/data/amazon/links.html
Command   python -m experiments.main --config=experiments/beauty_pairs.py:ridge --workdir=runs/b
Expected  see experiments/RESULTS.md
"""

from ml_collections import config_dict

from experiments import beauty


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = beauty.get_config(model, kinds=("pairs",))
    c.about = __doc__ or ""
    return c
