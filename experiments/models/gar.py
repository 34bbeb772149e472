"""GAR; the values per data set are those of Cold-PopBias, github.com/gmeehan96/Cold-PopBias."""

from ml_collections import config_dict

from experiments.backbones import COMMON_SPACE, cold_start_method, common_fields
from jaxcold.models import gar


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields(reference=True)
    c.alpha = config_dict.placeholder(float)  # weight of the generator's error; unset: tuned
    c.beta = config_dict.placeholder(float)  # weight of real negatives; unset: tuned
    c.dropout = 0.1  # of the generator
    return c


METHOD = cold_start_method(
    "GAR",
    gar.build,
    fields,
    batch_size=1024,
    values={"alpha": 1.0, "beta": 1.0, "l2": 1e-4, "magnitude_scaling": 0.0},
    by_dataset={
        "electronics": {"beta": 0.4},
        "microlens": {"beta": 0.8, "train.learning_rate": 5e-4},
    },
    space={**COMMON_SPACE, "alpha": (0.05, 0.1, 0.2, 0.5, 1.0), "beta": (0.05, 0.1, 0.2, 0.5, 1.0)},
)
