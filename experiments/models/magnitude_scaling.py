"""Magnitude scaling: the vectors of a finished run, their norms drawn towards a common one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from experiments import backbones, closed_forms
from experiments.method import Method
from jaxcold.models.backbone import Backbone, scale_magnitudes
from jaxcold.types import Model, untrained


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = config_dict.ConfigDict()
    c.backbone = config_dict.placeholder(str)  # WORKDIR of the run, or an .npz file
    # Of the scaling; validation chooses. The authors' range; 0 leaves the vectors as they are.
    c.alpha = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
    return c


def scaled(backbone: Backbone, warm: np.ndarray, alpha: float) -> Model:
    """The model of one alpha."""
    norm = float(np.linalg.norm(backbone.item[warm], axis=1).mean())
    rows = scale_magnitudes(backbone.item, norm, alpha)
    return untrained(lambda *_: rows, lambda *_: backbone.user)


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    del devices
    backbone = backbones.read(config.model.backbone, config.seeds[0], dataset)
    warm = dataset.split.warm_items
    alphas: Sequence[float] = config.model.alpha
    models = {alpha: scaled(backbone, warm, alpha) for alpha in alphas}
    return closed_forms.choose(models, config, dataset, "magnitude scaling", "alpha")[1]


METHOD = Method(
    tasks=("pairs",),
    title=lambda model: "magnitude scaling",
    fields=fields,
    build=build,
    required=("backbone",),
    save=closed_forms.save,
)
