"""Heater; the values per data set are those of Cold-PopBias, github.com/gmeehan96/Cold-PopBias."""

from ml_collections import config_dict

from experiments.backbones import COMMON_SPACE, cold_start_method, common_fields
from jaxcold.models import heater


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields()
    c.experts = config_dict.placeholder(int)  # this and what follows unset: tuned
    c.mixing = config_dict.placeholder(float)  # weight of content in the vectors trained on
    c.alpha = config_dict.placeholder(float)  # weight of the distances to the backbone
    return c


CLOTHING = {"experts": 7, "mixing": 0.2, "alpha": 1e-4, "l2": 0.0, "train.learning_rate": 5e-4}
METHOD = cold_start_method(
    "Heater",
    heater.build,
    fields,
    batch_size=1024,
    values={**CLOTHING, "magnitude_scaling": 0.0},
    by_dataset={
        "electronics": {"mixing": 0.5, "alpha": 1e-5, "l2": 1e-4, "train.learning_rate": 1e-3},
        "microlens": {"mixing": 0.2, "alpha": 1e-5, "l2": 1e-4, "train.learning_rate": 1e-3},
    },
    space={
        **COMMON_SPACE,
        "experts": (3, 5, 7),
        "mixing": (0.2, 0.5, 0.8),
        "alpha": (1e-5, 1e-4, 1e-3),
    },
)
