"""CLCRec; the defaults and ranges are those of ColdRec, github.com/YuanchenBei/ColdRec."""

from ml_collections import config_dict

from experiments.backbones import COMMON_SPACE, cold_start_method, common_fields
from jaxcold.models import clcrec


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields(backbone=False, reference=True)  # l2: weight of the vectors' norms
    c.dim = 64
    c.negatives = config_dict.placeholder(int)  # of each pair; this and what follows unset: tuned
    c.tau = config_dict.placeholder(float)  # temperature
    c.lam = config_dict.placeholder(float)  # weight of the loss between ids and content
    c.content_fraction = config_dict.placeholder(float)  # of the slots that show content
    return c


METHOD = cold_start_method(
    "CLCRec",
    clcrec.build,
    fields,
    batch_size=4096,
    values={"negatives": 128, "tau": 2.0, "lam": 0.5, "content_fraction": 0.5, "l2": 1e-4},
    space={
        **COMMON_SPACE,
        "negatives": (32, 64, 128, 256),
        "tau": (0.1, 0.2, 0.5, 1.0, 2.0),
        "lam": (0.1, 0.2, 0.5, 1.0),
        "content_fraction": (0.1, 0.2, 0.5, 1.0),
    },
)
