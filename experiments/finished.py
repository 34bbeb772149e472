"""Finished runs, read back for tables and figures of several."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import task as tasks
from experiments import workdir as workdirs
from experiments.method import ConfigError
from experiments.task import Task
from jaxcold.reporting import run_log


class Finished(NamedTuple):
    """What the --workdir of a finished run holds."""

    folder: pathlib.Path
    results: Mapping[str, Any]  # results.json
    split: Mapping[str, np.ndarray]  # split.npz
    task: Task

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the run."""
        return self.results["config"]

    @property
    def mode(self) -> str:
        """The first mode of the task in which there are test metrics."""
        return tasks.mode_of(self.task, self.results["metrics"])

    def values(self, metric: str) -> list[float]:
        """A test metric such as "ndcg@20" of every seed, on the slice of `per_user`."""
        entry = self.results["metrics"].get(f"test/{self.mode}{self.task.drawn}/{metric}", {})
        values = entry.get("values", ())
        return [float("nan") if value is None else value for value in values]

    def per_user(self) -> dict[str, np.ndarray]:
        """NDCG and more by "users", who have the same numbers in every run of the split.

        Raises:
            DataError: if the file with them cannot be read.
        """
        name = f"test/{self.mode}{self.task.drawn}"
        return run_log.read_slice(self.folder / workdirs.USERS_FILE, name)


def read(folders: Sequence[pathlib.Path]) -> list[Finished]:
    """Reads runs of one kind on one split.

    Raises:
        ConfigError: naming the folder that is no finished run, or of another kind or split.
    """
    runs = [_read(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if run.task is not first.task:
            raise ConfigError(
                f"{run.folder}: is another kind of experiment than {first.folder}; compare runs "
                "of one"
            )
        if run.split.keys() != first.split.keys() or any(
            not np.array_equal(run.split[name], first.split[name]) for name in run.split
        ):
            raise ConfigError(
                f"{run.folder}: has another split than {first.folder}; run it with "
                f"--config.data.split_file={first.folder / workdirs.SPLIT_FILE}"
            )
    return runs


def _read(folder: pathlib.Path) -> Finished:
    try:
        results = json.loads((folder / workdirs.RESULTS_FILE).read_text())
        with np.load(folder / workdirs.SPLIT_FILE, allow_pickle=False) as split:
            return Finished(folder, results, dict(split), tasks.of(results["config"]))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: not a finished run ({error}); name its --workdir") from None
