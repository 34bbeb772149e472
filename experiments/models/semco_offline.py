"""SEMCo-Offline: a small student trained after a wide teacher.

Meehan and Pauwels, SIGIR 2026, section 3.3.2. The values per data set are those that the authors
published, but where a comment says otherwise.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from experiments.method import ConfigError, Method
from experiments.models import semco
from experiments.pairs import same_split
from jaxcold.estimators.semco import SEMCo
from jaxcold.models import distillation
from jaxcold.types import Model

# Data set -> mapping -> values of the student.
FIELDS = ("lam", "omega", "tau", "positives")
TUNED: dict[str, dict[str, tuple[float, float, float, int]]] = {
    "clothing": {
        "softmax": (1.0, 0.1, 0.3, 15),
        "entmax15": (1.0, 1.5, 4.0, 10),
        "sparsemax": (5.0, 6.0, 16.0, 5),
    },
    "electronics": {
        "softmax": (1.0, 0.3, 0.3, 15),
        "entmax15": (2.0, 2.5, 3.0, 5),
        "sparsemax": (5.0, 6.0, 18.0, 5),
    },
    "microlens": {
        "softmax": (0.5, 0.3, 0.4, 15),
        "entmax15": (2.0, 4.0, 4.0, 5),
        "sparsemax": (2.0, 16.0, 16.0, 5),
    },
    "onion": {
        "softmax": (0.1, 0.1, 0.1, 5),
        "entmax15": (2.0, 2.0, 1.5, 5),
        "sparsemax": (2.0, 12.0, 10.0, 15),
    },
    # The authors' values for onion; those of sparsemax are the best of 12 trials by cold-validation
    # NDCG@20 (seed 0, content=files).
    "citeulike-a": {
        "softmax": (0.1, 0.1, 0.1, 5),
        "entmax15": (2.0, 2.0, 1.5, 5),
        "sparsemax": (1.0, 8.0, 8.0, 10),
    },
    # Not tuned: the base model's temperatures.
    "synthetic": {"entmax15": (1.0, 2.5, 2.5, 5), "sparsemax": (1.0, 6.0, 6.0, 5)},
}
# Temperatures of a teacher that are not those of the base model: the authors' for onion.
TEACHER_TAU = {"citeulike-a": {"softmax": 0.1, "entmax15": 2.0, "sparsemax": 10.0}}
# Data sets whose values belong to the exact gradient.
EXACT = ("synthetic",)

LAM = (0.1, 0.5, 1.0, 2.0, 5.0)
POSITIVES = (5, 10, 15)
OMEGA: Mapping[str, Sequence[float]] = {
    "softmax": (0.1, 0.125, 0.15, 0.2, 0.25, 0.3),
    "entmax15": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    "sparsemax": (6.0, 8.0, 10.0, 12.0, 14.0, 16.0),
}


def common_fields() -> config_dict.ConfigDict:
    """The fields of both kinds of students; hidden, out and tau are the student's."""
    c = semco.common_fields()
    c.teacher_hidden = 384
    c.teacher_out = 384
    c.teacher_tau = config_dict.placeholder(float)  # unset: tuned
    c.teacher_epochs = config_dict.placeholder(int)  # unset: train.epochs, 15 at most
    c.lam = config_dict.placeholder(float)  # weight of the student's contrastive loss; unset: tuned
    c.omega = config_dict.placeholder(float)  # temperature of the distillation; unset: tuned
    c.positives = config_dict.placeholder(int)  # items per user in its sub-batches; unset: tuned
    return c


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = common_fields()
    # WORKDIR of a finished run of model "semco" with these teacher sizes; unset: train one.
    c.teacher = config_dict.placeholder(str)
    return c


def gradient_and_mapping(config: config_dict.ConfigDict) -> tuple[str, str]:
    """As `semco.gradient_and_mapping`, with the default gradient of distillation."""
    if config.model.gradient is None:
        config = config.copy_and_resolve_references()
        config.model.gradient = default_gradient(config)
    return semco.gradient_and_mapping(config)


def default_gradient(config: config_dict.ConfigDict) -> str:
    """The gradient of a run that leaves it unset."""
    return "fenchel_young" if config.data.name in EXACT else "autodiff"


def gradient_of_values(config: config_dict.ConfigDict, mapping: str) -> str:
    """The gradient that the values of a data set belong to."""
    return default_gradient(config) if mapping != "softmax" else "autodiff"


def teacher_epochs(config: config_dict.ConfigDict) -> dict[str, int]:
    """The default of teacher_epochs, once train.epochs is known."""
    return {"teacher_epochs": min(15, config.train.epochs)} if config.train.epochs else {}


def tuned(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The student's values and the base model's for its teacher."""
    gradient, mapping = gradient_and_mapping(config)
    name = config.data.name
    result: dict[str, Any] = {
        "gradient": default_gradient(config),
        **teacher_epochs(config),
    }
    values = TUNED.get(name, {}).get(mapping)
    if values is None or gradient != gradient_of_values(config, mapping):
        return result
    teacher = semco.TUNED.get(name, {}).get(gradient, {}).get(mapping)
    if teacher is not None:
        result |= {"teacher_tau": teacher[0], "l2": teacher[1]}
    if mapping in TEACHER_TAU.get(name, {}):
        result["teacher_tau"] = TEACHER_TAU[name][mapping]
    return result | dict(zip(FIELDS, values, strict=True))


def search_space(config: config_dict.ConfigDict) -> dict[str, Sequence[Any]]:
    """The authors' ranges of the student. The teacher is a base model with a search of its own."""
    mapping = gradient_and_mapping(config)[1]
    tau = temperatures(config)
    return {"tau": tau, "lam": LAM, "omega": OMEGA[mapping], "positives": POSITIVES}


def temperatures(config: config_dict.ConfigDict) -> Sequence[float]:
    """As `semco.temperatures`, with the default gradient of distillation."""
    if config.model.gradient is None:
        config = config.copy_and_resolve_references()
        config.model.gradient = default_gradient(config)
    return semco.temperatures(config)


def teachers(folder: str, config: config_dict.ConfigDict, dataset: Any) -> dict[int, Any]:
    """The teacher's parameters for each seed, from a finished run on the same split.

    Raises:
        ConfigError: if there is none, or if it was trained on another split.
    """
    run = pathlib.Path(folder)
    split = run / "split.npz"
    try:
        same = same_split(split, dataset)
    except (OSError, KeyError, ValueError):
        raise ConfigError(
            f"config.model.teacher: {split} cannot be read; name the --workdir of a finished run"
        ) from None
    if not same:
        raise ConfigError(
            f"config.model.teacher: {run} was trained on another split; pass "
            f"--config.data.split_file={split}"
        )
    return {s: SEMCo.load(run / "models" / f"seed_{s}").encoder.params for s in config.seeds}


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    options = semco.options(config)
    folder = options.pop("teacher")
    given = None if folder is None else teachers(folder, config, dataset)
    return distillation.build(dataset, **options, online=False, teachers=given, devices=devices)


def title(model: Mapping[str, Any]) -> str:
    """ "SEMCo-Offline sparsemax"."""
    return semco.title(model, "SEMCo-Offline")


METHOD = Method(
    tasks=("pairs",),
    title=title,
    fields=fields,
    build=build,
    defaults=semco.METHOD.defaults,
    tuned=tuned,
    required=("teacher_tau", "l2", "lam", "omega", "tau", "positives"),
    search_space=search_space,
    save=semco.save,
)
