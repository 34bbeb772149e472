"""FREEDOM: the backbone of other methods; the ranges are those of its authors."""

from ml_collections import config_dict

from experiments.backbones import cold_start_method
from jaxcold.models import freedom


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = config_dict.ConfigDict()
    c.dim = 64
    c.k = 10  # neighbours of an item in each mode
    c.text_weight = 0.9  # of the mode "text" in the item graph
    # Fraction of the edges that an epoch leaves out; this and the next unset: tuned.
    c.edge_dropout = config_dict.placeholder(float)
    c.lam = config_dict.placeholder(float)  # weight of each mode's loss
    return c


METHOD = cold_start_method(
    "FREEDOM",
    freedom.build,
    fields,
    batch_size=2048,
    values={"edge_dropout": 0.8, "lam": 1e-3},
    space={"edge_dropout": (0.8, 0.9), "lam": (0.0, 1e-5, 1e-4, 1e-3)},
    patience=20,
    # What other methods read are the vectors of users and warm items.
)._replace(validation="val/warm")
