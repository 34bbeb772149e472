"""What differs between data sets of pairs and of sequences; `experiments.runner` does the rest."""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from jaxcold import parallel
from jaxcold.data.content import describe_degenerate, distinct_rows
from jaxcold.data.original_ids import read_ids
from jaxcold.data.pairs.load import default_root
from jaxcold.data.text_tables import Hosts
from jaxcold.types import EvalSlice, Model


class Task(NamedTuple):
    """Data, slices and tables of one kind of data set, D. Slices are called "test/cold"."""

    headline: str  # the slice of validation whose NDCG chooses
    tables: Mapping[str, str]  # test slice, less "test/", -> what competes there
    # Prefixes of their names: terminal and figure show the first that the model is evaluated in.
    modes: tuple[str, ...]
    columns: Mapping[str, str]  # title -> metric, of the terminal's table
    drawn: str  # test slice, less the mode, whose items the figure shows
    bars: tuple[tuple[str, str], ...]  # (test slice, less the mode, and metric) in the figure
    # Title -> metric less its cut-off, of `experiments.compare`; MODE stands for the mode.
    compared: Mapping[str, str]
    load: Callable[[config_dict.ConfigDict], Any]  # config -> D
    describe: Callable[[Any], str]  # D -> a line
    slices: Callable[[config_dict.ConfigDict, Any], dict[str, EvalSlice]]
    without_tests: Callable[[Any], Any]  # D -> D to choose with: nothing of a test set is left
    write_split: Callable[[pathlib.Path, Any], None]
    # Methods to compare with; a random ranking is always there.
    baselines: Callable[[config_dict.ConfigDict, Any], dict[str, Model]]
    # config, D, model, params, model_state, folder: saves the model of a method that does not say
    # itself how it is saved.
    save: Callable[..., None]


def data_options(config: config_dict.ConfigDict) -> dict[str, Any]:
    """config.data as arguments of a loader; "published" is true of the shipped name alone."""
    options = config.data.to_dict()
    del options["kind"]
    if options["name"] != config.get("about_dataset", options["name"]):
        options["published"] = ""
    return {**options, "hosts": reading_hosts()}


def original_ids(config: config_dict.ConfigDict) -> dict[str, np.ndarray] | None:
    """What `experiments.import_data` called the users and items, by number; None: the numbers."""
    root = config.data.root
    return read_ids(default_root(config.data.name) if root is None else pathlib.Path(root))


def reading_hosts() -> Hosts:
    """What the readers need to know of the hosts that share the reading of a table."""
    return Hosts(jax.process_count(), jax.process_index(), parallel.all_gather_hosts)


def content_findings(tables: Mapping[str, np.ndarray]) -> str:
    """How many items differ in content, and what is odd about features; "" for mapped tables."""
    if not tables or any(isinstance(table, np.memmap) for table in tables.values()):
        return ""
    findings = [f", {distinct_rows(tables):,} distinct contents", *describe_degenerate(tables)]
    return "\n".join(findings)


def of(config: Any) -> Task:
    """The task of a config, which may be a plain dictionary, as in results.json."""
    return importlib.import_module(f"experiments.{config['data']['kind']}").TASK


def mode_of(task: Task, metrics: Mapping[str, Any]) -> str:
    """The first mode of the task in which there are test metrics."""
    return next(
        mode for mode in task.modes if any(name.startswith(f"test/{mode}") for name in metrics)
    )
