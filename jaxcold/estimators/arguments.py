"""The arguments of the estimators, checked before anything is read or compiled."""

import contextlib
import difflib
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, minimum: int | None = None) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is below `minimum`.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} is at least {minimum}, not {number}")
    return number


def check_number(name: str, value: Any) -> None:
    """Raises a TypeError or a ValueError unless the value is a finite number."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is a finite number, not {value}")


def check_fit(
    *,
    counts: Mapping[str, Any],
    numbers: Mapping[str, Any],
    seed: Any,
    val_fraction: Any,
    standardize: Any,
) -> None:
    """Checks what the `fit` of every estimator takes.

    Args:
        counts: whole numbers from 1 by name; None of one that is unset.
        numbers: finite numbers by name; None of one that is unset.
        seed: a whole number from 0.
        val_fraction: from 0 and below 1; None if unset.
        standardize: "auto", True or False.

    Raises:
        TypeError, ValueError: naming the first argument that is something else.
    """
    for name, value in counts.items():
        if value is not None:
            check_integer(name, value, 1)
    check_integer("seed", seed, 0)
    for name, value in {**numbers, "val_fraction": val_fraction}.items():
        if value is not None:
            check_number(name, value)
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is from 0 and below 1, not {val_fraction}")
    if standardize is not True and standardize is not False and standardize != "auto":
        raise ValueError(f'standardize is "auto", True or False, not {standardize!r:.40}')


def check_learning_rate(value: Any) -> None:
    """Raises unless the learning rate is a positive number."""
    check_number("learning_rate", value)
    if value <= 0:
        raise ValueError(f"learning_rate is a positive number, not {value}")


def check_options(
    estimator: str, fit: Callable, builds: Sequence[Callable], options: Mapping[str, Any]
) -> None:
    """Checks the names of options, and their types against the defaults of the build functions.

    Raises:
        TypeError: for a name that they lack, with the closest one, or for a value of another
            type.
    """
    known = _parameters(builds)
    own = [name for name in inspect.signature(fit).parameters if name != "options"]
    names = [name for name in known if name not in ("dataset", "devices", "reference")]
    for name, value in options.items():
        if name not in names and name != "reference":
            close = difflib.get_close_matches(name, [*own, *names], n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
            raise TypeError(f"{estimator}.fit has no argument {name!r}; {remedy}")
        default = known[name].default
        if isinstance(default, bool | str):
            if not isinstance(value, type(default)):
                kind = "True or False" if isinstance(default, bool) else "a string"
                raise TypeError(f"{name} is {kind}, not {value!r}")
        elif isinstance(default, int):
            check_integer(name, value)
        elif isinstance(default, float):
            check_number(name, value)


def _parameters(builds: Sequence[Callable]) -> dict[str, inspect.Parameter]:
    """The parameters by name; the first function passes those that it lacks on to the others."""
    return {
        name: parameter
        for build in reversed(builds)
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def build_options(builds: Sequence[Callable], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options of a trained model that are built with; not its epochs and batches."""
    names = _parameters(builds)
    left = ("dataset", "devices", "epochs", "batch_size")
    return {name: x for name, x in options.items() if name in names and name not in left}


@contextlib.contextmanager
def translate_messages() -> Iterator[None]:
    """Names the arguments of an estimator where a model's message names those of a config."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("features stay on the host (data.mmap)", "stream=True works")
        translated = re.sub(r"\b(?:model|train)\.([a-z_]\w*)", r"\1", message)
        if translated == str(error):
            raise
        raise type(error)(translated) from None


def to_json_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
    }
