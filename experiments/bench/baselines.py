"""Speed of the cold-start baselines' steps: ``python -m experiments.bench.baselines``.

At the size of citeulike-a by default, on generated data and vectors of a backbone drawn at random,
with the values and batch sizes of `experiments.models`. Every round of one run calls each measured
function once, so that load from outside hits all alike; times are medians. Printed are, for each
method, the step, the host's time for an epoch's batches, and the time of an epoch that follows:
batches are made while steps run where the method says so, but are counted in full here. Where torch
is importable, the same step in PyTorch from the same parameters on the same batches comes beside
it, with the relative difference of the first losses where nothing in them is drawn at random.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging

from experiments.bench.semco_step import Sizes, define_sizes, generate, sizes_of_flags
from experiments.bench.timing import Stepper, median_times
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import aldi, clcrec, freedom, gar, gorec, heater
from jaxcold.models.backbone import Backbone
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Model

CITEULIKE = Sizes(users=5_551, items=16_980, pairs=206_364, dim=512)
SEED, RATE, STEPS = 0, 1e-3, 4


class Method(NamedTuple):
    """How a baseline is built; the values of citeulike-a."""

    module: Any
    batch: int
    options: Mapping[str, float]
    has_backbone: bool = True
    is_random: bool = False  # in the loss


METHODS = {
    "clcrec": Method(
        clcrec, 4096, {"tau": 2.0, "lam": 0.5, "l2": 1e-4, "negatives": 128}, has_backbone=False
    ),
    "heater": Method(heater, 1024, {"experts": 7, "mixing": 0.2, "alpha": 1e-4, "l2": 0.0}),
    "gorec": Method(
        gorec,
        256,
        {
            "uniformity_weight": 15.0,
            "divergence_weight": 100.0,
            "dropout": 0.1,
            "l2": 1e-4,
            "clusters": 16,
        },
        is_random=True,
    ),
    "gar": Method(
        gar, 1024, {"alpha": 1.0, "beta": 1.0, "dropout": 0.1, "l2": 1e-4}, is_random=True
    ),
    "aldi": Method(aldi, 4096, {"alpha": 0.9, "beta": 0.05, "gamma": 0.1, "l2": 1e-4}),
    "freedom": Method(freedom, 2048, {"lam": 1e-3, "edge_dropout": 0.8}, has_backbone=False),
}


class Times(NamedTuple):
    """Of one method."""

    step: float  # seconds
    batches: float  # seconds of the host for an epoch
    steps: int  # of an epoch
    torch: float | None  # seconds of a step in PyTorch
    loss_gap: float | None  # relative difference of the first losses

    @property
    def epoch(self) -> float:
        """Seconds of an epoch."""
        return self.batches + self.steps * self.step


def build(name: str, dataset: Dataset, batch: int | None = None) -> Model:
    """The model of a method."""
    method, rng = METHODS[name], np.random.default_rng(SEED)
    arguments: list[Any] = [dataset]
    if method.has_backbone:
        rows = (dataset.interactions.num_users, dataset.interactions.num_items)
        arguments.append(Backbone(*(0.3 * rng.standard_normal((n, 64), np.float32) for n in rows)))
    return method.module.build(
        *arguments,
        batch_size=batch or method.batch,
        epochs=1,
        learning_rate=RATE,
        **method.options,
    )


def torch_step(name: str, model: Model, batches: list[Any], users: int) -> Callable[[], float]:
    """The same step in PyTorch."""
    from experiments.bench import torch_baselines as plain

    method, (params, _) = METHODS[name], model.init(SEED)
    constants = model.constants._asdict()
    arrays = [jax.tree.map(np.asarray, batch) for batch in batches]
    if name == "freedom":
        del constants["edges"]
        edges = arrays[0].edges
        arrays = [batch.pairs for batch in arrays]
    rates = {"learning_rate": RATE, "l2": method.options.get("l2", 0.0)}
    columns = [batch._asdict() for batch in arrays]
    if name == "gar":
        return plain.GARStep(params, constants, columns, method.options, **rates)
    if name == "freedom":
        loss: Any = plain.FreedomLoss(plain.to_torch(constants), edges, users)
    else:
        loss = plain.LOSSES[name]
    if name == "clcrec":  # its l2 is in the loss
        rates["l2"] = 0.0
    return plain.Step(loss, params["main"], constants, columns, method.options, **rates)


def measure(sizes: Sizes, names: list[str], repeats: int, threads: int) -> dict[str, Times]:
    """Compiles, warms up and measures the methods one after the other.

    Args:
        sizes: of the data.
        names: of the methods.
        repeats: runs of each measurement.
        threads: for PyTorch; ours follow the processors that the process may use.
    """
    dataset = generate(sizes)
    with_torch = importlib.util.find_spec("torch") is not None
    if with_torch:
        import torch

        torch.set_num_threads(threads)
    result = {}
    for name in names:
        largest = len(dataset.split.train.user) // STEPS  # whole batches, without padding
        model = build(name, dataset, min(METHODS[name].batch, largest))
        rng = np.random.default_rng(SEED)
        batches = [batch for _, batch in zip(range(STEPS), model.batches(rng), strict=False)]
        step = make_step(model)
        ours = Stepper(
            init_state(model, SEED), model.constants, [(step, batch) for batch in batches], SEED
        )
        functions: dict[str, Callable[[], Any]] = {"step": ours}
        gap = None
        if with_torch:
            theirs = torch_step(name, model, batches, dataset.interactions.num_users)
            first, other = ours(), theirs()
            gap = None if METHODS[name].is_random else abs(other / first - 1)
            functions["torch"] = theirs
        times = median_times(functions, repeats)
        hosts = {"batches": lambda model=model: list(model.batches(np.random.default_rng(1)))}
        host = median_times(hosts, max(1, repeats // 5), warm_up=1)["batches"]
        steps = model.steps_per_epoch
        result[name] = Times(times["step"], host, steps, times.get("torch"), gap)
    return result


def format_report(times: Mapping[str, Times]) -> list[str]:
    """The report."""
    lines = [
        f"{'':9s}{'step':>9s}{'batches':>10s}{'epoch':>9s}{'PyTorch step':>15s}{'over ours':>11s}"
        f"{'loss gap':>10s}",
        f"{'':9s}{'ms':>9s}{'s/epoch':>10s}{'s':>9s}{'ms':>15s}",
    ]
    for name, t in times.items():
        line = f"{name:9s}{t.step * 1e3:9.1f}{t.batches:10.2f}{t.epoch:9.2f}"
        if t.torch is not None:
            gap = "random" if t.loss_gap is None else f"{t.loss_gap:.0e}"
            line += f"{t.torch * 1e3:15.1f}{t.torch / t.step:11.2f}{gap:>10s}"
        lines.append(line)
    if all(t.torch is None for t in times.values()):
        lines.append("PyTorch: skipped, torch is not importable")
    return lines


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    unknown = sorted({*values.methods} - METHODS.keys())
    if unknown:
        raise app.UsageError(f"--methods={unknown[0]}: choose among {', '.join(METHODS)}")
    if hasattr(os, "sched_setaffinity"):  # XLA starts as many threads as it may use processors
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: values.threads])
    sizes = sizes_of_flags(CITEULIKE)
    print("\n".join(format_report(measure(sizes, values.methods, values.repeats, values.threads))))


if __name__ == "__main__":
    define_sizes(CITEULIKE)
    flags.DEFINE_integer("repeats", 15, "runs of each measurement", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "processors to use", lower_bound=1)
    flags.DEFINE_list("methods", list(METHODS), "what to measure")
    app.run(main)
