"""Models: the only package that imports flax.

A model is one file with a ``build(dataset, **options) -> jaxcold.types.Model``.
"""

import importlib
from typing import Any

from jaxcold.data.dataset import Dataset
from jaxcold.types import Model

NAMES = ("semco",)


def build(name: str, dataset: Dataset, **options: Any) -> Model:
    """Builds a model by name.

    Raises:
        ValueError: for an unknown name, listing the known ones, or a bad option.
    """
    if name not in NAMES:
        raise ValueError(f"model {name!r} is unknown; choose one of: {', '.join(NAMES)}")
    return importlib.import_module(f"jaxcold.models.{name}").build(dataset, **options)
