"""Item cold-start recommendation in JAX.

``jaxcold.fit`` makes the recommender by content that we recommend. ``jaxcold.SEMCo`` is its trained
part alone, ``jaxcold.Linear`` a closed form, ``jaxcold.SASRec`` recommends by the order of what a
user took: fit one on data frames, embed new items, recommend, save.
``jaxcold.load(folder)`` reads a saved one. Names are imported when they are first used, so that
``import jaxcold.sparse`` brings in JAX and nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcold.estimators.hybrid import Hybrid as Hybrid
    from jaxcold.estimators.hybrid import fit as fit
    from jaxcold.estimators.linear import Linear as Linear
    from jaxcold.estimators.load import load as load
    from jaxcold.estimators.sasrec import SASRec as SASRec
    from jaxcold.estimators.semco import SEMCo as SEMCo

__version__ = "0.1.0"
_HOMES = {
    "Hybrid": "estimators.hybrid",
    "Linear": "estimators.linear",
    "SASRec": "estimators.sasrec",
    "SEMCo": "estimators.semco",
    "fit": "estimators.hybrid",
    "load": "estimators.load",
}
__all__ = ["Hybrid", "Linear", "SASRec", "SEMCo", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxcold.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
