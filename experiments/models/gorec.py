"""GoRec; the values per data set are those of Cold-PopBias, github.com/gmeehan96/Cold-PopBias."""

from ml_collections import config_dict

from experiments.backbones import COMMON_SPACE, cold_start_method, common_fields
from jaxcold.models import gorec


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields(reference=True)
    c.clusters = config_dict.placeholder(int)  # of the content; this and what follows unset: tuned
    c.uniformity_weight = config_dict.placeholder(float)
    c.divergence_weight = config_dict.placeholder(float)
    c.dropout = config_dict.placeholder(float)  # of the content that the decoder sees
    return c


METHOD = cold_start_method(
    "GoRec",
    gorec.build,
    fields,
    batch_size=256,
    values={
        "clusters": 2000,
        "uniformity_weight": 15.0,
        "divergence_weight": 100.0,
        "dropout": 0.1,
        "l2": 1e-4,
        "magnitude_scaling": 0.0,
    },
    by_dataset={
        "citeulike-a": {"clusters": 1000},  # ours
        "electronics": {"clusters": 3000, "divergence_weight": 5000.0, "l2": 1e-3},
        "microlens": {
            "uniformity_weight": 10.0,
            "divergence_weight": 10.0,
            "train.learning_rate": 1e-4,
        },
    },
    space={
        **COMMON_SPACE,
        "clusters": (500, 1000, 2000, 3000),
        "uniformity_weight": (1.0, 5.0, 10.0, 15.0),
        "divergence_weight": (10.0, 50.0, 100.0, 500.0, 1000.0),
        "dropout": (0.0, 0.1, 0.2, 0.5),
    },
)
