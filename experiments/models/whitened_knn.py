"""Nearest neighbours in whitened content: no training."""

from typing import Any

from ml_collections import config_dict

from experiments import closed_forms
from experiments.method import Method
from jaxcold.models import closed_form
from jaxcold.types import Model


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    del devices
    return closed_form.whitened_knn(dataset, max_length=config.model.max_length)


METHOD = Method(
    tasks=("pairs", "sequences"),
    title=lambda model: "whitened KNN",
    fields=closed_forms.fields,
    build=build,
    tuned=closed_forms.tuned,
    seeds=(0,),
)
