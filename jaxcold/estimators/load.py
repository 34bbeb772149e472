"""Reading a saved recommender, whichever it is."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from jaxcold.estimators import artifact, schema
from jaxcold.types import DataError

if TYPE_CHECKING:
    from jaxcold.estimators.hybrid import Hybrid
    from jaxcold.estimators.linear import Linear
    from jaxcold.estimators.sasrec import SASRec
    from jaxcold.estimators.semco import SEMCo
    from jaxcold.estimators.vectors import Vectors

# Kind in model.json -> module and class, imported when needed: SASRec brings scikit-learn.
_CLASSES = {
    "hybrid": ("hybrid", "Hybrid"),
    "linear": ("linear", "Linear"),
    "semco": ("semco", "SEMCo"),
    "sasrec": ("sasrec", "SASRec"),
    "vectors": ("vectors", "Vectors"),
}


def load(folder: str | os.PathLike) -> "SEMCo | Hybrid | Linear | SASRec | Vectors":
    """Reads what the `save` of any recommender wrote.

    Raises:
        DataError: naming the file that is absent or damaged, and what to do.
    """
    kind = schema.model_kind(artifact.read(folder, ())[0])
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise DataError(
            f"{folder}: holds a model of kind {kind!r:.40}; this version of jaxcold reads "
            + ", ".join(_CLASSES)
        )
    module, name = _CLASSES[kind]
    recommender: Any = getattr(importlib.import_module(f"jaxcold.estimators.{module}"), name)
    return recommender.load(folder)
