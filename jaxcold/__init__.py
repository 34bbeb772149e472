"""Item cold-start recommendation in JAX.

``jaxcold.SEMCo`` is the recommender: fit it on data frames, embed new items, recommend, save.
``jaxcold.load(folder)`` reads a saved one. Names are imported when they are first used, so that
``import jaxcold.sparse`` brings in JAX and nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcold.recommender import SEMCo as SEMCo
    from jaxcold.recommender import load as load

__version__ = "0.1.0"
__all__ = ["SEMCo", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from jaxcold import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
