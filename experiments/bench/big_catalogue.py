"""SEMCo on a catalogue that stays on disk: ``python -m experiments.bench.big_catalogue``.

2 million items with 256 float16 features each (1 GB, memory-mapped) and 20 million training pairs
by default, made in a temporary folder from one seed. SEMCo with sparsemax and ``encode="active"``
trains a number of steps through the library's own `build`, `make_step` and `fit`; features are
read for each step while earlier steps run. Printed are

- the seconds that it takes to make the data, and to prepare them for training;
- milliseconds per step, from the end of one to the end of the next: median and quartiles;
- the fraction of that time in which no step ran because the host was not ready. It is an upper
  bound: where the last step had ended by the time that a batch came, all of the wait for the
  batch counts;
- items encoded per step, and the bytes of features read for them;
- resident memory at its peak, of the whole process from its first line on, as the system counts it
  (VmHWM), and how it divides: anonymous memory, which is this process's own, and pages of mapped
  files, features and libraries, which the system may take back at any time. The parts are sampled,
  and their peaks need not fall together. What the system keeps of a file in its cache belongs to
  no process and is not counted.

Linux only: the parts of resident memory are read from ``/proc/self/status``.
"""

import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging

from experiments.bench import semco_step
from jaxcold.data.pairs.batches import touched_items
from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.models import semco
from jaxcold.reporting.run_log import peak_memory
from jaxcold.train.loop import fit
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, Model

SEED = 0
GOAL_BYTES = 6e9
# Rows of features, and users, that are made at once.
ROWS, USERS = 16_384, 65_536
# The first steps, one of which waits for the compiler, are left out of the times.
WARM_UP = 5


class Sizes(NamedTuple):
    """The size of everything."""

    items: int = 2_000_000
    users: int = 1_000_000
    interactions: int = 20_000_000  # all of them for training
    dim: int = 256
    hidden: int = 192
    out: int = 64
    batch: int = 2048


class Measured(NamedTuple):
    """What a run took."""

    sizes: Sizes
    warm: int  # items with a training pair
    made: float  # seconds to make the data
    prepared: float  # seconds from the data to the first batch's request
    steps: np.ndarray  # f64[n] seconds from the end of a step to the end of the next
    waited: float  # seconds of them, at most, without a step to run
    active: np.ndarray  # i64[steps] items encoded
    peak: int  # bytes resident
    anonymous: int  # bytes, at their own peak
    mapped: int  # bytes, at their own peak
    loss: tuple[float, float]  # of the first and the last step


def write_features(path: Path, sizes: Sizes, rng: np.random.Generator) -> None:
    """Writes f16[items, dim] of low rank with noise as ``.npy``, some rows at a time."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (sizes.items, sizes.dim)}
    mix = rng.standard_normal((32, sizes.dim), np.float32)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for at in range(0, sizes.items, ROWS):
            rows = min(ROWS, sizes.items - at)
            table = rng.standard_normal((rows, 32), np.float32) @ mix
            table += rng.standard_normal(table.shape, np.float32)
            table.astype("<f2").tofile(file)


def draw_interactions(sizes: Sizes, rng: np.random.Generator) -> Interactions:
    """Distinct pairs with power-law degrees, shuffled; a fifth of the items has none.

    Raises:
        ValueError: if that many distinct pairs cannot be drawn.
    """
    s = sizes
    user_cdf = np.cumsum(semco_step.draw_frequencies(s.users, 20, rng))
    ends = np.rint(user_cdf / user_cdf[-1] * s.interactions).astype(np.int64)
    degree = np.diff(ends, prepend=0)
    frequency = semco_step.draw_frequencies(s.items, 35, rng)
    frequency[rng.permutation(s.items)[: s.items // 5]] = 0
    if 4 * degree.max() > s.items:
        raise ValueError(
            f"--interactions={s.interactions} gives a user {degree.max()} of {s.items} items; "
            "ask for fewer, or for more users or items"
        )
    item_cdf = np.cumsum(frequency)
    item_cdf /= item_cdf[-1]
    user, item = (np.empty(s.interactions, np.int32) for _ in range(2))
    for first in range(0, s.users, USERS):
        wanted = degree[first : first + USERS]
        keys = np.zeros(0, np.int64)
        missing = wanted
        while missing.any():  # a pair drawn twice counts once
            drawn = np.searchsorted(item_cdf, rng.random(missing.sum()), side="right")
            keys = np.union1d(keys, np.repeat(np.arange(len(wanted)), missing) * s.items + drawn)
            missing = wanted - np.bincount(keys // s.items, minlength=len(wanted))
        at = slice(ends[first] - degree[first], ends[first] - degree[first] + len(keys))
        user[at], item[at] = np.divmod(keys, s.items)
        user[at] += first
    order = rng.permutation(np.arange(s.interactions, dtype=np.int32))
    return Interactions(user[order], item[order], s.users, s.items)


def generate(folder: Path, sizes: Sizes) -> Dataset:
    """The data set, its features in a file of the folder and mapped from there.

    Raises:
        ValueError: see `draw_interactions`.
    """
    rng = np.random.default_rng(SEED)
    train = draw_interactions(sizes, rng)
    path = folder / "text_feat.npy"
    write_features(path, sizes, rng)
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    is_warm = np.zeros(sizes.items, bool)
    is_warm[train.item] = True
    warm, cold = (np.flatnonzero(mask).astype(np.int32) for mask in (is_warm, ~is_warm))
    val, test = np.array_split(cold, 2)
    split = ColdSplit(train, warm, val, test, {"warm_train": train.pairs()})
    content = ContentFeatures({"text": table}, {"text": np.ones(sizes.items, bool)})
    ids = np.arange(sizes.users), np.arange(sizes.items)
    return Dataset("big catalogue", train, split, content, *ids)


def build(dataset: Dataset, sizes: Sizes, *, stream: bool = True) -> Model:
    """SEMCo with sparsemax that encodes the active items alone."""
    return semco.build(
        dataset,
        batch_size=sizes.batch,
        epochs=semco_step.EPOCHS,
        alpha=2.0,
        tau=5.0,
        l2=semco_step.MAPPINGS["sparsemax"].l2,
        learning_rate=semco_step.RATE,
        hidden=sizes.hidden,
        out=sizes.out,
        encode="active",
        stream=stream,
    )


def resident() -> dict[str, int]:
    """Bytes of this process in memory now: "anonymous" and "mapped"."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if words[0].startswith("Rss")}
    return {
        "anonymous": 1024 * kilobytes["RssAnon:"],
        "mapped": 1024 * (kilobytes["RssFile:"] + kilobytes["RssShmem:"]),
    }


@contextlib.contextmanager
def watch_memory(every: float = 0.02) -> Iterator[dict[str, int]]:
    """The peaks of `resident` while the block runs, read every so many seconds."""
    peaks = resident()
    stop = threading.Event()

    def update() -> None:
        while not stop.wait(every):
            for name, now in resident().items():
                peaks[name] = max(peaks[name], now)

    thread = threading.Thread(target=update, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


class StepLog:
    """Records the steps of the first epoch while `fit` runs them."""

    def __init__(self, model: Model, steps: int):
        self.ended: list[float] = []  # when each step had ended
        self.idle: list[float] = []  # seconds that the device had no step to run before each
        self.losses: list[float] = []
        self.first: Any = None  # batch
        self._model, self._steps, self._step = model, steps, make_step(model)
        self._last_loss: Any = None

    def step(self, *args: Any) -> Any:
        """The model's step."""
        state, metrics = self._step(*args)
        self._last_loss = metrics["loss"]
        return state, metrics

    def batches(self, rng: np.random.Generator) -> Iterator[Any]:
        """The first of the model's batches."""
        asked = time.perf_counter()
        for batch in itertools.islice(self._model.batches(rng), self._steps):
            ready = self._last_loss is None or self._last_loss.is_ready()
            self.idle.append(time.perf_counter() - asked if ready else 0.0)
            if self.first is None:
                self.first = batch
            yield batch
            asked = time.perf_counter()

    def on_step(self, _: int, metrics: dict[str, float]) -> None:
        """Records a finished step."""
        self.ended.append(time.perf_counter())
        self.losses.append(metrics["loss"])


def train(model: Model, steps: int) -> StepLog:
    """Trains some steps of the first epoch, and returns their record."""
    log = StepLog(model, steps)
    state = init_state(model, SEED)
    short = model._replace(batches=log.batches, steps_per_epoch=steps, epochs=1)
    jax.block_until_ready(fit(short, log.step, state, seed=SEED, on_step=log.on_step))
    return log


def measure(sizes: Sizes, steps: int) -> Measured:
    """Makes the data, trains, and removes the data.

    Args:
        sizes: of the data and the model.
        steps: to train, of one epoch at most.

    Raises:
        ValueError: for sizes of which no data can be made.
    """
    with watch_memory() as peaks, tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        dataset = generate(Path(folder), sizes)
        made = time.perf_counter()
        model = build(dataset, sizes)
        prepared = time.perf_counter()
        steps = min(steps, model.steps_per_epoch)
        log = train(model, steps)
        peak = peak_memory()
        parts = dict(peaks)
        skip = min(WARM_UP, steps - 1)
        users, items = (np.asarray(x)[:steps] for x in log.first.epoch[:2])
        histories = Csr(
            np.asarray(model.constants.indptr, np.int64), np.asarray(model.constants.indices)
        )
        warm = len(dataset.split.warm_items)
        active = [
            len(touched_items(item, histories.take(np.unique(user)).indices, warm))
            for user, item in zip(users, items, strict=True)
        ]
        return Measured(
            sizes=sizes,
            warm=warm,
            made=made - start,
            prepared=prepared - made,
            steps=np.diff(log.ended)[skip - 1 :] if skip else np.array([log.ended[0] - prepared]),
            waited=sum(log.idle[skip:]),
            active=np.array(active),
            peak=peak,
            anonymous=parts["anonymous"],
            mapped=parts["mapped"],
            loss=(log.losses[0], log.losses[-1]),
        )


def format_report(m: Measured) -> list[str]:
    """The report."""
    s = m.sizes
    low, median, high = np.quantile(m.steps, [0.25, 0.5, 0.75]) * 1e3
    row = 2 * s.dim
    read = np.median(m.active) * row
    return [
        f"{s.items:,} items ({m.warm:,} warm) x {s.dim} float16 features = "
        f"{s.items * row / 1e6:,.0f} MB on disk; {s.users:,} users, {s.interactions:,} training "
        f"pairs, widths {s.hidden}, {s.out}, batch {s.batch:,}",
        f"made in {m.made:.1f} s, prepared in {m.prepared:.1f} s",
        f"step: median {median:.0f} ms, quartiles {low:.0f} and {high:.0f}, of {len(m.steps)}; "
        f"loss {m.loss[0]:.3f} to {m.loss[1]:.3f} in {len(m.active)} steps",
        f"of it waiting for the host: at most {m.waited / m.steps.sum():.1%}",
        f"items encoded per step: median {np.median(m.active):,.0f}, most {m.active.max():,}; "
        f"features read {read / 1e6:.1f} MB per step, {read / (s.items * row):.2%} of all",
        f"peak resident memory {m.peak / 1e6:,.0f} MB: anonymous {m.anonymous / 1e6:,.0f}, mapped "
        f"files {m.mapped / 1e6:,.0f}   goal < {GOAL_BYTES / 1e6:,.0f}",
    ]


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # not a line for each kind of device that is absent
    sizes = semco_step.sizes_of_flags(Sizes())
    try:
        measured = measure(sizes, values.steps)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print("\n".join(format_report(measured)))


if __name__ == "__main__":
    semco_step.define_sizes(Sizes())
    flags.DEFINE_integer("steps", 200, "steps to train", lower_bound=1)
    app.run(main)
