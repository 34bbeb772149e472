"""Experiments with SEMCo: users have sets of items, and some items are cold."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from experiments.config import ConfigError
from experiments.task import Task
from jaxcold import models, parallel
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.pairs.load import load
from jaxcold.data.pairs.split import write_split
from jaxcold.data.text_tables import Hosts
from jaxcold.estimators.semco import SEMCo
from jaxcold.models import content_knn
from jaxcold.models.distillation import clock_of
from jaxcold.reporting import tables as report
from jaxcold.reporting.figures import BARS
from jaxcold.train.transforms import adam_coupled_l2, cosine, distillation
from jaxcold.types import EvalSlice, Model, Representations

FAMILY = {"semco": "SEMCo", "semco_offline": "SEMCo-Offline", "semco_online": "SEMCo-Online"}
MAPS = {1.0: "softmax", 1.5: "entmax15", 2.0: "sparsemax"}


def _title(model: Mapping[str, Any]) -> str:
    alpha = model["alpha"]
    return f"{FAMILY[model['name']]} {MAPS.get(alpha, f'alpha={alpha:g}')}"


def _describe(dataset: Dataset) -> str:
    split = dataset.split
    return (
        f"{dataset.name}: {dataset.interactions.num_users:,} users, "
        f"{len(split.warm_items):,} warm and {len(split.cold_items):,} cold items, "
        f"{len(split.train.user):,} training pairs, modes "
        + ", ".join(f"{name} ({t.shape[1]})" for name, t in dataset.content.tables.items())
    )


def _slices(config: config_dict.ConfigDict, dataset: Dataset) -> dict[str, EvalSlice]:
    del config
    return dataset.split.slices()


def _build(config: config_dict.ConfigDict, dataset: Dataset) -> tuple[Model, Any]:
    options = config.model.to_dict()
    for other in ("l2", "tuned", "warmup_epochs"):
        options.pop(other, None)
    if "encode" in options:
        options["stream"] = config.data.mmap and options["encode"] == "active"
    if folder := options.pop("teacher", None):
        options["teachers"] = _teachers(folder, config, dataset)
    devices = parallel.choose(config.parallel, shard_items=config.shard_items)
    model = models.build(
        options.pop("name"),
        dataset,
        batch_size=config.train.batch_size,
        devices=devices,
        **options,
    )
    return model, _optimizer(config, model)


def _teachers(folder: str, config: config_dict.ConfigDict, dataset: Dataset) -> dict[int, Any]:
    """The teacher of each seed, from a finished run on the same split."""
    where = pathlib.Path(folder)
    split = where / "split.npz"
    try:
        same = _same_split(split, dataset)
    except (OSError, KeyError, ValueError):
        raise ConfigError(
            f"config.model.teacher: {split} cannot be read; name the --workdir of a finished run"
        ) from None
    if not same:
        raise ConfigError(
            f"config.model.teacher: {where} was trained on another split; pass "
            f"--config.data.split_file={split}"
        )
    return {s: SEMCo.load(where / "models" / f"seed_{s}").encoder.params for s in config.seeds}


def _optimizer(config: config_dict.ConfigDict, model: Model) -> Any:
    rate, steps = config.train.learning_rate, model.steps_per_epoch
    if config.model.name == "semco":
        return adam_coupled_l2(cosine(rate, config.train.epochs * steps), config.model.l2)
    trained = 0 if config.model.get("teacher") else config.model.teacher_epochs * steps
    clock = clock_of(config.model.name == "semco_online", trained)
    return distillation(
        rate,
        config.model.l2,
        teacher_stops=clock.teacher,
        student_starts=clock.student,
        warm_up_steps=config.model.get("warmup_epochs", 0) * steps,
    )


def _epochs(config: config_dict.ConfigDict) -> int:
    """A teacher that is trained first has its own."""
    first = config.model.name == "semco_offline" and not config.model.teacher
    return config.train.epochs + (config.model.teacher_epochs if first else 0)


def _write_split(path: pathlib.Path, dataset: Dataset) -> None:
    write_split(path, dataset.split)


def _same_split(path: pathlib.Path, dataset: Dataset) -> bool:
    with np.load(path, allow_pickle=False) as theirs:
        return np.array_equal(theirs["warm_train"], dataset.split.pairs["warm_train"])


def _baselines(
    config: config_dict.ConfigDict, dataset: Dataset
) -> dict[str, Callable[[str], Representations]]:
    """Content-KNN, and the oracle if there is one."""
    del config
    content = dataset.content
    knn = content_knn.represent(content.tables, dataset.split.train.by_user(), content.present)
    found: dict[str, Callable[[str], Representations]] = {"content_knn": lambda part: knn}
    if (oracle := dataset.oracle) is not None:
        found["oracle"] = lambda part: oracle
    return found


def _serve(
    config: config_dict.ConfigDict,
    dataset: Dataset,
    model: Model,
    params: Any,
    folder: pathlib.Path,
) -> None:
    SEMCo.from_training(dataset, model, params, config.model.to_dict()).save(folder)


TASK = Task(
    title=_title,
    headline="val/cold",
    tables=report.CANDIDATES,
    modes=("",),
    columns=report.COLUMNS,
    drawn="cold",
    bars=BARS,
    compared={
        "Recall": "test/cold/recall",
        "NDCG": "test/cold/ndcg",
        "MDG": "test/cold/mdg",
        "Gini div.": "test/cold/gini",
        "warm NDCG": "test/warm/ndcg",
        "val. NDCG": "val/cold/ndcg",
    },
    load=lambda config: load(
        **config.data.to_dict(),
        hosts=Hosts(jax.process_count(), jax.process_index(), parallel.all_gather_hosts),
    ),
    describe=_describe,
    slices=_slices,
    part=lambda where: "every",  # the users are the same in validation and test
    build=_build,
    epochs=_epochs,
    write_split=_write_split,
    same_split=_same_split,
    person=lambda users, split: users,
    baselines=_baselines,
    serve=_serve,
)
