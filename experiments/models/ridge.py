"""Ridge regression from content onto clicks, in closed form."""

from typing import Any

from ml_collections import config_dict

from experiments import closed_forms
from experiments.method import Method
from jaxcold.models import closed_form
from jaxcold.types import Model


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = closed_forms.fields()
    c.l2 = closed_form.L2  # added to the diagonal; validation chooses among several
    c.unit_rows = False  # items that are ranked have norm one
    return c


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    del devices
    model = config.model
    models = closed_form.ridge(
        dataset, l2=model.l2, unit_rows=model.unit_rows, max_length=model.max_length
    )
    return closed_forms.choose(models, config, dataset, "ridge")[1]


METHOD = Method(
    tasks=("pairs", "sequences"),
    title=lambda model: "ridge, unit rows" if model["unit_rows"] else "ridge",
    fields=fields,
    build=build,
    tuned=closed_forms.tuned,
    save=closed_forms.save,
    seeds=(0,),
)
