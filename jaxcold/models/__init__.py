"""Models: the only package that imports flax.

A model is one file with a ``build(dataset, **options) -> jaxcold.types.Model``: of a `Dataset` for
the SEMCo family, of a `SequenceDataset` for "sasrec" and "content_knn".
"""

import importlib
from typing import Any

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.types import Model

# Name to its file and what the name alone decides.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "semco": ("semco", {}),
    "semco_offline": ("distillation", {"online": False}),
    "semco_online": ("distillation", {"online": True}),
    "sasrec": ("sasrec", {}),
    "content_knn": ("content_knn", {}),
}


def build(name: str, dataset: Dataset | SequenceDataset, **options: Any) -> Model:
    """Builds a model by name.

    Raises:
        ValueError: for an unknown name, listing the known ones, or a bad option.
    """
    if name not in NAMES:
        raise ValueError(f"model {name!r} is unknown; choose one of: {', '.join(NAMES)}")
    file, decided = NAMES[name]
    return importlib.import_module(f"jaxcold.models.{file}").build(dataset, **decided, **options)
