"""Content nearest neighbours: no training."""

from typing import Any

from ml_collections import config_dict

from experiments.method import Method
from experiments.models import sasrec
from jaxcold.models import content_knn
from jaxcold.types import Model


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = config_dict.ConfigDict()
    c.max_length = config_dict.placeholder(
        int
    )  # items of a history that count; unset: all; 64 of sequences
    return c


def tuned(config: config_dict.ConfigDict) -> dict[str, Any]:
    """On sequences what SASRec reads."""
    if config.data.kind != "sequences":
        return {}
    return {"max_length": sasrec.tuned(config)["max_length"]}


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    del devices
    return content_knn.build(dataset, max_length=config.model.max_length)


METHOD = Method(
    tasks=("pairs", "sequences"),
    title=lambda model: "content-KNN as model",  # beside the baseline of that name
    fields=fields,
    build=build,
    tuned=tuned,
    seeds=(0,),
)
