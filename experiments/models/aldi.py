"""ALDI; the defaults and ranges are those of ColdRec, github.com/YuanchenBei/ColdRec."""

from ml_collections import config_dict

from experiments.backbones import COMMON_SPACE, cold_start_method, common_fields
from jaxcold.models import aldi


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields()
    c.alpha = config_dict.placeholder(float)  # weight of the ranking loss; unset: tuned
    c.beta = config_dict.placeholder(float)  # of the identification loss; unset: tuned
    c.gamma = config_dict.placeholder(float)  # of the rating loss; unset: tuned
    c.weighted = False  # items count by how often they were taken
    c.steepness = config_dict.placeholder(float)  # of that weight; unset: tuned
    return c


METHOD = cold_start_method(
    "ALDI",
    aldi.build,
    fields,
    batch_size=4096,
    values={
        "alpha": 0.9,
        "beta": 0.05,
        "gamma": 0.1,
        "steepness": 4.0,
        "l2": 1e-4,
        "magnitude_scaling": 0.0,
    },
    space={
        **COMMON_SPACE,
        "alpha": (0.5, 1.0, 1.5, 2.0),
        "beta": (0.05, 0.1, 0.2, 0.5),
        "gamma": (0.1, 0.2, 0.5, 1.0),
        "steepness": (2.0, 4.0, 6.0, 8.0),
    },
)
