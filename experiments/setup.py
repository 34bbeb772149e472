"""What the seeds of a run share: its config, data, slices and model, and the compiled step."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict
from rich.console import Console

from experiments import memory
from experiments import method as methods
from experiments import task as tasks
from experiments.method import Method
from experiments.task import Task
from jaxcold import parallel
from jaxcold.eval import statistics
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.eval.metrics import Metrics
from jaxcold.reporting.progress import Progress
from jaxcold.train.step import Step, TrainState, make_step
from jaxcold.types import EvalSlice, Model

BySlice = Mapping[str, Metrics]


class Setup(NamedTuple):
    """Everything that the seeds of a run share."""

    config: config_dict.ConfigDict  # resolved
    method: Method
    task: Task
    workdir: pathlib.Path  # where this host writes
    checkpoints: pathlib.Path  # a folder that all hosts see
    dataset: Any
    slices: Mapping[str, EvalSlice]
    model: Model
    step: Step
    console: Console

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def evaluate(self, state: TrainState, slices: Mapping[str, EvalSlice]) -> BySlice:
        """Metrics of a training's state on slices."""
        chosen = self.config.eval
        return evaluate_model(
            self.model, state.params, state.model_state, slices, chosen.cutoffs, chosen.ties
        )

    def validate(self, state: TrainState) -> BySlice:
        """Metrics of a training's state on the slice that chooses."""
        name = validation_slice(self.config)
        return self.evaluate(state, {name: self.slices[name]})

    def score(self, state: TrainState) -> float:
        """The metric that chooses, of a training's state."""
        return statistics.flatten(self.validate(state))[headline(self.config)]

    def progress(self, label: str, done: int = 0) -> Progress:
        """A progress bar of a training of which `done` steps are behind."""
        model = self.model
        total = model.examples_per_epoch * model.epochs
        return Progress(
            label,
            total=total,
            unit="items",
            console=self.console,
            done=_examples(model, done),
        )

    def examples_of_step(self, number: int) -> int:
        """Training examples of a step, as evenly as the progress bar needs them."""
        return _examples(self.model, number + 1) - _examples(self.model, number)


def _examples(model: Model, steps: int) -> int:
    return steps * model.examples_per_epoch // max(model.steps_per_epoch, 1)


def make_setup(
    config: config_dict.ConfigDict,
    dataset: Any,
    slices: Mapping[str, EvalSlice],
    workdir: pathlib.Path,
    checkpoints: pathlib.Path,
    console: Console,
) -> Setup:
    """Builds the model of a resolved config and its step; nothing is written yet."""
    method, task = methods.find(config.model.name), tasks.of(config)
    devices = parallel.choose(config.parallel, shard_items=config.shard_items)
    model = method.build(config, dataset, devices)
    step = make_step(model)
    memory.check(config, model, step)
    return Setup(config, method, task, workdir, checkpoints, dataset, slices, model, step, console)


def cutoff_of(cutoffs: Collection[int]) -> int:
    """The cut-off that tables show: the papers' 20 where it is there, else the largest."""
    return 20 if 20 in cutoffs else max(cutoffs)


def headline(config: config_dict.ConfigDict) -> str:
    """The metric that chooses, on validation."""
    return f"{validation_slice(config)}/ndcg@{cutoff_of(config.eval.cutoffs)}"


def validation_slice(config: config_dict.ConfigDict) -> str:
    """The slice of validation that the metric which chooses is of."""
    return methods.find(config.model.name).validation or tasks.of(config).headline


def title(config: Mapping[str, Any]) -> str:
    """The method's name in tables, such as "SEMCo sparsemax"; the config may be of JSON."""
    return methods.find(config["model"]["name"]).title(config["model"])
