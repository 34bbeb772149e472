"""What the experiments know of a method; a file in `experiments.models` describes one.

A method is found by the name after the colon of ``--config=FILE.py:NAME``: the attribute ``METHOD``
of the module ``experiments.models.NAME``, or of a module anywhere named by its dotted path.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from jaxcold.types import Model


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line that names the field."""


def nothing(config: config_dict.ConfigDict) -> dict[str, Any]:
    """No tuned values, or nothing to search."""
    del config
    return {}


class Method(NamedTuple):
    """A method. Names of fields are those of config.model, or "train.NAME" of config.train."""

    tasks: tuple[str, ...]  # "pairs", "sequences": the kinds of data sets that it takes
    title: Callable[[Mapping[str, Any]], str]  # config.model -> its name in tables
    fields: Callable[[], config_dict.ConfigDict]  # config.model with its defaults
    # (config, data set, devices of `jaxcold.parallel.choose`) -> model
    build: Callable[[config_dict.ConfigDict, Any, Any], Model]
    # name of a data set -> field -> default, where it is not the one of `fields` or the common one
    defaults: Callable[[str], Mapping[str, Any]] = lambda dataset: {}
    # config -> field -> value, taken where a run leaves the field unset
    tuned: Callable[[config_dict.ConfigDict], Mapping[str, Any]] = nothing
    required: tuple[str, ...] = ()  # fields that may not stay unset
    # config -> field -> values to try; `experiments.search` tries those that a run leaves unset
    search_space: Callable[[config_dict.ConfigDict], Mapping[str, Sequence[Any]]] = nothing
    # (config, data set, model, params, model_state, folder): saves what serves recommendations;
    # None: the vectors of users and items, see `jaxcold.estimators.vectors`
    save: Callable[..., None] | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # default; one where nothing is random
    # The slice of validation whose NDCG chooses among epochs and values; None: the task's.
    validation: str | None = None


def names() -> list[str]:
    """The methods of `experiments.models`."""
    folder = pathlib.Path(__file__).parent / "models"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def find(name: str) -> Method:
    """The method of a name or dotted path.

    Raises:
        ConfigError: if there is none, listing the known ones.
    """
    path = name if "." in name else f"experiments.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # a module that the method needs
        raise ConfigError(
            f"model {name!r} is unknown; choose one of: {', '.join(names())}; or name a module of "
            "your own by its dotted path"
        ) from None
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method):
        raise ConfigError(f"model {name!r}: {path} has no METHOD; see experiments/method.py")
    return method


def get(config: config_dict.ConfigDict, field: str) -> Any:
    """The value of a field by its name in `Method`."""
    section, _, key = field.rpartition(".")
    return config[section or "model"][key]


def assign(config: config_dict.ConfigDict, field: str, value: Any) -> None:
    """Sets a field by its name in `Method`."""
    section, _, key = field.rpartition(".")
    config[section or "model"][key] = value


def flag(field: str) -> str:
    """The field as a flag names it: "config.model.tau"."""
    return f"config.{field}" if "." in field else f"config.model.{field}"
