"""Speed of SEMCo's training step: ``python -m experiments.bench.semco_step``.

At the size of Amazon Clothing by default, on generated data. Every round of one run calls each
measured function once, so that load from outside hits all alike; times are medians. Printed are

- this machine's float32 matmul peak at the encoder's shapes: the better of the first layer's
  forward product ``[N, D] @ [D, h]`` and its weight gradient ``[D, N] @ [N, h]``;
- the step's time, its FLOP/s and their fraction of that peak. A step of N warm items, D features,
  widths h and d, and B pairs needs::

      FLOPs = 2 * 2 N D h    first layer: forward, weight gradient (features need no gradient)
            + 3 * 2 N h d    final layer: forward, weight gradient, input gradient
            + 3 * 2 B B d    logits: forward, two gradients

  Nothing else is counted: batch norm's moments, histories, loss and optimizer are overhead;
- sparsemax and entmax15 over softmax;
- the fraction of an epoch that the host spends making batches;
- memory: the process at its peak, and what the compiled step asks for;
- where torch and entmax are importable, the same step in PyTorch from the same initial
  parameters, next to ours once more. It comes last: idle threads of the two slow each other.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import app, flags, logging

from experiments.bench.timing import Stepper, median_times
from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.models import semco
from jaxcold.reporting.run_log import peak_memory
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, Model


class Mapping(NamedTuple):
    """One of the paper's mappings with the values published for Clothing."""

    alpha: float
    tau: float
    l2: float


MAPPINGS = {
    "softmax": Mapping(1.0, 0.2, 0.005),
    "entmax15": Mapping(1.5, 2.5, 0.005),
    "sparsemax": Mapping(2.0, 12.0, 0.001),
}
RATE, EPOCHS, SEED = 1e-3, 15, 0

Sized = TypeVar("Sized", bound=NamedTuple)


class Sizes(NamedTuple):
    """The size of everything; the defaults are Clothing's."""

    users: int = 39_387
    items: int = 23_033
    pairs: int = 278_677  # in the whole data set; 64 % of them are for training
    dim: int = 384
    hidden: int = 192
    out: int = 64
    batch: int = 2048

    @property
    def warm(self) -> int:
        """Items with training pairs: 80 %."""
        return self.items - self.items // 5


class TorchTimes(NamedTuple):
    """Mapping -> seconds of a step; empty without PyTorch."""

    seconds: dict[str, float]
    ours: dict[str, float]  # our step again, in the same rounds
    loss_gap: float  # largest relative difference of PyTorch's first losses from ours


class Measured(NamedTuple):
    """Seconds, unless named otherwise."""

    sizes: Sizes
    matmul: dict[str, float]  # product at the encoder's shapes
    step: dict[str, float]  # mapping
    active: float  # sparsemax with encode="active"
    batches: float  # an epoch's batches on the host
    steps_per_epoch: int
    peak_bytes: int
    step_bytes: int  # arguments, results and scratch space of the compiled sparsemax step
    torch: TorchTimes

    @property
    def flops(self) -> int:
        """Of a step, as defined at the top of this file."""
        return step_flops(self.sizes)

    @property
    def peak(self) -> float:
        """FLOP/s of the better product."""
        s = self.sizes
        return 2 * s.warm * s.dim * s.hidden / min(self.matmul.values())

    @property
    def fraction_of_peak(self) -> dict[str, float]:
        """Mapping to the step's fraction of the peak."""
        return {name: self.flops / seconds / self.peak for name, seconds in self.step.items()}


def step_flops(sizes: Sizes) -> int:
    """FLOPs that a training step needs; see the top of this file."""
    s = sizes
    first = 2 * s.warm * s.dim * s.hidden
    final = 2 * s.warm * s.hidden * s.out
    logits = 2 * s.batch * s.batch * s.out
    return 2 * first + 3 * final + 3 * logits


def define_sizes(defaults: Sized) -> None:
    """Makes a flag of each field of a tuple of sizes."""
    for field, value in defaults._asdict().items():
        flags.DEFINE_integer(field, value, f"number of {field}", lower_bound=1)


def sizes_of_flags(defaults: Sized) -> Sized:
    """The tuple with the values of those flags."""
    return defaults._replace(**{name: getattr(flags.FLAGS, name) for name in defaults._fields})


def draw_frequencies(rows: int, longest: float, rng: np.random.Generator) -> np.ndarray:
    """Frequencies that fall with the root of the rank, from `longest` times the mean, shuffled."""
    weight = (np.arange(rows) + rows / (4 * longest**2)) ** -0.5
    return rng.permutation(weight / weight.sum())


def generate(sizes: Sizes) -> Dataset:
    """Training pairs with power-law degrees, and content of low rank with noise.

    Raises:
        ValueError: if that many distinct pairs do not exist.
    """
    s, rng = sizes, np.random.default_rng(0)
    count = round(0.64 * s.pairs)
    if 2 * count > s.users * s.warm:
        raise ValueError(
            f"--pairs={s.pairs} is too dense for {s.users} users and {s.warm} warm items; at most "
            f"{int(s.users * s.warm / 2 / 0.64)}"
        )

    of_user, of_item = draw_frequencies(s.users, 20, rng), draw_frequencies(s.warm, 35, rng)
    keys = np.zeros(0, np.int64)
    while len(keys) < count:  # until enough of them are distinct
        drawn = rng.choice(s.users, count, p=of_user) * s.warm
        keys = np.union1d(keys, drawn + rng.choice(s.warm, count, p=of_item))
    user, item = np.divmod(rng.choice(keys, count, replace=False), s.warm)
    train = Interactions(user.astype(np.int32), item.astype(np.int32), s.users, s.items)
    cold = np.arange(s.warm, s.items, dtype=np.int32)
    val, test = np.array_split(cold, 2)
    warm = np.arange(s.warm, dtype=np.int32)
    split = ColdSplit(train, warm, val, test, {"warm_train": train.pairs()})
    latent = rng.standard_normal((s.items, 32), np.float32)
    table = latent @ rng.standard_normal((32, s.dim), np.float32)
    table += rng.standard_normal(table.shape, np.float32)
    content = ContentFeatures({"text": table}, {"text": np.ones(s.items, bool)})
    return Dataset("generated", train, split, content, np.arange(s.users), np.arange(s.items))


def build(dataset: Dataset, sizes: Sizes, mapping: Mapping, encode: str = "all") -> Model:
    """SEMCo in the authors' form."""
    return semco.build(
        dataset,
        batch_size=sizes.batch,
        alpha=mapping.alpha,
        tau=mapping.tau,
        epochs=EPOCHS,
        l2=mapping.l2,
        learning_rate=RATE,
        gradient="autodiff",
        hidden=sizes.hidden,
        out=sizes.out,
        encode=encode,
    )


def make_matmuls(sizes: Sizes) -> dict[str, Callable[[], Any]]:
    """The products that dominate the encoder, compiled."""
    s, key = sizes, jax.random.key(0)
    x = jax.random.normal(key, (s.warm, s.dim))
    kernel = jax.random.normal(key, (s.dim, s.hidden))
    cotangent = jax.random.normal(key, (s.warm, s.hidden))
    forward = jax.jit(lambda x, w: x @ w)
    gradient = jax.jit(lambda x, g: x.T @ g)
    return {
        "forward": lambda: forward(x, kernel),
        "weight gradient": lambda: gradient(x, cotangent),
    }


def make_stepper(model: Model, batches: Sequence[Any]) -> Stepper:
    """The model's step on a cycle of batches, from fresh parameters."""
    step = make_step(model)
    state = init_state(model, SEED)
    return Stepper(state, model.constants, [(step, batch) for batch in batches], SEED)


def step_bytes(model: Model, batch: Any) -> int:
    """Memory of the compiled step: arguments, results and scratch space."""
    step: Any = make_step(model)
    lowered = step.lower(init_state(model, SEED), model.constants, batch, jax.random.key(SEED))
    used = lowered.compile().memory_analysis()
    return int(
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        + used.temp_size_in_bytes
        - used.alias_size_in_bytes
    )


def measure_torch(
    models: dict[str, Model],
    histories: Csr,
    batches: Sequence[Any],
    steps: dict[str, Stepper],
    losses: dict[str, float],
    repeats: int,
    threads: int,
) -> TorchTimes:
    """Times of the same steps in PyTorch; empty where torch or entmax cannot be imported.

    Args:
        models: mapping -> model.
        histories: the training items of all users, numbered among the warm ones.
        batches: the models'.
        steps: mapping -> our step, measured again in the same rounds.
        losses: mapping -> our first loss.
        repeats: rounds.
        threads: for PyTorch.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "entmax")):
        return TorchTimes({}, {}, 0.0)
    import torch

    from experiments.bench.torch_steps import SEMCoStep

    torch.set_num_threads(threads)
    pairs = []
    for batch in batches:
        real = np.asarray(batch.epoch.weight[batch.at]) > 0
        ids = (batch.epoch.user[batch.at], batch.epoch.item[batch.at])
        pairs.append(tuple(np.asarray(column)[real] for column in ids))
    torch_steps = {}
    for name, model in models.items():
        torch_steps[f"torch {name}"] = SEMCoStep(
            model.init(SEED)[0]["main"],  # those of `init_state`
            model.constants.features[0],
            histories,
            pairs,
            **MAPPINGS[name]._asdict(),
            learning_rate=RATE,
            period=EPOCHS * model.steps_per_epoch,
        )
    gap = max(abs(torch_steps[f"torch {name}"]() / loss - 1) for name, loss in losses.items())
    seconds = median_times({**steps, **torch_steps}, repeats, warm_up=1)
    torch_seconds = {name: seconds[f"torch {name}"] for name in steps}
    return TorchTimes(torch_seconds, {name: seconds[name] for name in steps}, gap)


def measure(sizes: Sizes, repeats: int, threads: int) -> Measured:
    """Compiles, warms up and measures everything.

    Args:
        sizes: of the data and the model.
        repeats: runs of each measurement.
        threads: for PyTorch; ours follow the processors that the process may use.
    """
    dataset = generate(sizes)
    models = {name: build(dataset, sizes, mapping) for name, mapping in MAPPINGS.items()}
    model = models["sparsemax"]
    active = build(dataset, sizes, MAPPINGS["sparsemax"], encode="active")
    rng = np.random.default_rng(0)
    batches, active_batches = list(model.batches(rng)), list(active.batches(rng))
    steps = {name: make_stepper(m, batches) for name, m in models.items()}
    products = make_matmuls(sizes)
    rest: dict[str, Callable[[], Any]] = {
        "active": make_stepper(active, active_batches),
        "batches": lambda: list(model.batches(rng)),
    }
    losses = {name: step() for name, step in steps.items()}
    seconds = median_times({**products, **steps, **rest}, repeats)
    scratch = step_bytes(model, batches[0])
    peak_bytes = peak_memory()  # before PyTorch adds its own

    histories = dataset.split.train.by_user()
    rounds = max(1, repeats // 3)
    torch = measure_torch(models, histories, batches, steps, losses, rounds, threads)
    return Measured(
        sizes=sizes,
        matmul={name: seconds[name] for name in products},
        step={name: seconds[name] for name in steps},
        active=seconds["active"],
        batches=seconds["batches"],
        steps_per_epoch=model.steps_per_epoch,
        peak_bytes=peak_bytes,
        step_bytes=scratch,
        torch=torch,
    )


def format_report(m: Measured) -> list[str]:
    """The report."""
    s = m.sizes
    product = 2 * s.warm * s.dim * s.hidden
    softmax = m.step["softmax"]
    text = [
        f"{s.users:,} users, {s.warm:,} warm items, {round(0.64 * s.pairs):,} training pairs, "
        f"widths {s.dim}, {s.hidden}, {s.out}, batch {s.batch:,}",
        f"a step needs {m.flops / 1e9:.2f} GFLOP",
        "",
        "matmul                         ms   GFLOP/s",
        *(f"{k:24s}{t * 1e3:9.2f}{product / t / 1e9:10.1f}" for k, t in m.matmul.items()),
        "",
        "training step                  ms   GFLOP/s  of peak  over softmax",
    ]
    for name, seconds in m.step.items():
        text.append(
            f"{name:24s}{seconds * 1e3:9.2f}{m.flops / seconds / 1e9:10.1f}"
            f"{m.fraction_of_peak[name]:9.1%}{seconds / softmax:14.3f}"
        )
    text += [
        "goals: of peak >= 50 %, sparsemax over softmax <= 1.1",
        f"{'sparsemax, active items':24s}{m.active * 1e3:9.2f}",
        "",
    ]
    epoch = m.batches + m.steps_per_epoch * m.step["sparsemax"]
    text += [
        f"input pipeline: {m.batches * 1e3:.1f} ms of an epoch of {epoch:.2f} s, "
        f"{m.batches / epoch:.2%}   goal < 3 %",
        f"peak memory: process {m.peak_bytes / 1e6:,.0f} MB; "
        f"the compiled step alone {m.step_bytes / 1e6:,.0f} MB",
        "",
    ]
    if not m.torch.seconds:
        return [*text, "PyTorch: skipped, torch and entmax are not both importable"]
    text.append("PyTorch step                   ms    over ours")
    for name, seconds in m.torch.seconds.items():
        text.append(f"{name:24s}{seconds * 1e3:9.2f}{seconds / m.torch.ours[name]:13.2f}")
    return [*text, f"first losses differ by {m.torch.loss_gap:.1e} of their value"]


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # not a line for each kind of device that is absent
    if hasattr(os, "sched_setaffinity"):  # XLA starts as many threads as it may use processors
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: values.threads])
    sizes = sizes_of_flags(Sizes())
    try:
        measured = measure(sizes, values.repeats, values.threads)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print("\n".join(format_report(measured)))


if __name__ == "__main__":
    define_sizes(Sizes())
    flags.DEFINE_integer("repeats", 15, "runs of each measurement", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "processors to use", lower_bound=1)
    app.run(main)
