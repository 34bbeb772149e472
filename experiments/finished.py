"""Finished runs, read back for tables and figures of several."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import method as methods
from experiments import task as tasks
from experiments import workdir as workdirs
from experiments.method import ConfigError
from experiments.task import Task
from jaxcold.eval import statistics
from jaxcold.reporting import run_log


class Finished(NamedTuple):
    """What the --workdir of a finished run holds, or those of several with other seeds."""

    folder: pathlib.Path
    results: Mapping[str, Any]  # results.json
    split: Mapping[str, np.ndarray]  # split.npz
    task: Task
    folders: tuple[pathlib.Path, ...]  # all of them, the first being `folder`

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the run."""
        return self.results["config"]

    @property
    def mode(self) -> str:
        """The first mode of the task in which there are test metrics."""
        return tasks.mode_of(self.task, self.results["metrics"])

    @property
    def is_deterministic(self) -> bool:
        """Whether no seed changes the method."""
        return len(methods.find(self.config["model"]["name"]).seeds) == 1

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
        return self._mean_of(workdirs.USERS_FILE, f"test/{self.mode}{self.task.drawn}")

    def per_item(self, slice_name: str) -> dict[str, np.ndarray]:
        """MDG, exposure and more of a test slice; see `jaxcold.eval.statistics.item_means`.

        Raises:
            DataError: if the file with them cannot be read.
        """
        return self._mean_of(workdirs.ITEMS_FILE, slice_name)

    def _mean_of(self, file: str, slice_name: str) -> dict[str, np.ndarray]:
        """The arrays of a slice, averaged over the folders, which have as many seeds each."""
        parts = [run_log.read_slice(folder / file, slice_name) for folder in self.folders]
        return {
            name: np.mean([part[name] for part in parts], axis=0)
            if np.issubdtype(value.dtype, np.floating)
            else value
            for name, value in parts[0].items()
        }


def merge(runs: Sequence[Finished]) -> Finished:
    """Runs of one method, each of other seeds but of as many, as one.

    Time is the mean, memory the largest.
    """
    first, results = runs[0], [run.results for run in runs]
    values = {
        name: [value for one in results for value in one["metrics"][name]["values"]]
        for name in first.results["metrics"]
    }
    numbers = {
        name: [float("nan") if value is None else value for value in column]
        for name, column in values.items()
    }
    seeds = [seed for run in runs for seed in run.config["seeds"]]
    return first._replace(
        results={
            **first.results,
            "config": {**first.config, "seeds": seeds},
            "metrics": statistics.summarise(numbers),
            "seconds": float(np.mean([one["seconds"] for one in results])),
            "peak_memory_bytes": max(one["peak_memory_bytes"] for one in results),
        },
        folders=tuple(folder for run in runs for folder in run.folders),
    )


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
            task = tasks.of(results["config"])
            return Finished(folder, results, dict(split), task, (folder,))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: not a finished run ({error}); name its --workdir") from None
