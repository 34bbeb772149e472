"""SEMCo-Online: a small student trained together with a wide teacher.

Meehan and Pauwels, SIGIR 2026, section 3.3.2. The values per data set are those that the authors
published, but where a comment says otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from experiments.method import Method
from experiments.models import semco, semco_offline
from jaxcold.models import distillation
from jaxcold.types import Model

# Data set -> mapping -> values; l2 and teacher_tau are the teacher's.
FIELDS = (
    "lam",
    "l2",
    "ema",
    "omega",
    "tau",
    "train.epochs",
    "warmup_epochs",
    "positives",
    "teacher_tau",
)
Values = tuple[float, float, float, float, float, int, int, int, float]
ONION: dict[str, Values] = {
    "entmax15": (0.5, 0.0001, 0.5, 2.0, 4.5, 20, 1, 15, 2.0),
    "sparsemax": (2.0, 1e-05, 0.0, 12.0, 10.0, 15, 1, 10, 10.0),
}
TUNED: dict[str, dict[str, Values]] = {
    "clothing": {
        "entmax15": (1.0, 0.0001, 0.0, 3.0, 4.0, 15, 5, 5, 2.5),
        "sparsemax": (5.0, 0.0001, 0.9, 6.0, 16.0, 25, 1, 10, 14.0),
    },
    "electronics": {
        "entmax15": (0.1, 0.0001, 0.5, 4.0, 3.5, 20, 5, 15, 2.5),
        "sparsemax": (2.0, 1e-05, 0.5, 14.0, 8.0, 25, 1, 5, 16.0),
    },
    "microlens": {
        "entmax15": (0.1, 0.0, 0.9, 3.5, 4.0, 25, 1, 5, 3.5),
        "sparsemax": (5.0, 0.0005, 0.0, 12.0, 20.0, 15, 1, 5, 12.0),
    },
    "onion": ONION,
    # The authors' values for onion. They have no online softmax: it has the values of the offline
    # student.
    "citeulike-a": {**ONION, "softmax": (0.1, 1e-4, 0.5, 0.1, 0.1, 15, 1, 5, 0.1)},
    # Not tuned: the base model's temperatures.
    "synthetic": {"sparsemax": (1.0, 0.0001, 0.5, 6.0, 6.0, 10, 1, 5, 6.0)},
}

EMA = (0.0, 0.5, 0.9, 0.99)
WARMUP_EPOCHS = (0, 1, 3, 5)
EPOCHS = (15, 20, 25)


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = semco_offline.common_fields()
    c.ema = config_dict.placeholder(float)  # momentum of the average that is the student's input
    c.warmup_epochs = config_dict.placeholder(int)  # of the student's learning rate
    return c


def tuned(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The values for the data set, alpha and gradient of a config."""
    gradient, mapping = semco_offline.gradient_and_mapping(config)
    name = config.data.name
    result: dict[str, Any] = {
        "gradient": semco_offline.default_gradient(config),
    }
    values = TUNED.get(name, {}).get(mapping)
    if values is not None and gradient == semco_offline.gradient_of_values(config, mapping):
        result |= dict(zip(FIELDS, values, strict=True))
    epochs = config.train.epochs or result.get("train.epochs")
    return result | ({"teacher_epochs": min(15, epochs)} if epochs else {})


def search_space(config: config_dict.ConfigDict) -> dict[str, Sequence[Any]]:
    """The authors' ranges."""
    return {
        **semco_offline.search_space(config),
        "l2": semco.L2,
        "teacher_tau": semco_offline.temperatures(config),
        "ema": EMA,
        "warmup_epochs": WARMUP_EPOCHS,
        "train.epochs": EPOCHS,
    }


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    return distillation.build(dataset, **semco.options(config), online=True, devices=devices)


def title(model: Mapping[str, Any]) -> str:
    """ "SEMCo-Online sparsemax"."""
    return semco.title(model, "SEMCo-Online")


METHOD = Method(
    tasks=("pairs",),
    title=title,
    fields=fields,
    build=build,
    defaults=lambda dataset: {
        **semco.METHOD.defaults(dataset),
        "train.epochs": config_dict.placeholder(int),  # tuned
    },
    tuned=tuned,
    required=(
        "teacher_tau",
        "l2",
        "lam",
        "omega",
        "tau",
        "positives",
        "ema",
        "warmup_epochs",
        "train.epochs",
    ),
    search_space=search_space,
    save=semco.save,
)
