"""Speed and memory of SASRec's training step: ``python -m experiments.bench.sasrec_step``.

Two sizes: "beauty", whose sequences are short and of unequal length, and "zvuk", where all are full
and the catalogue is large. Items are drawn at random; Beauty's lengths are the real ones where the
data set is installed. All that is compared is measured turn by turn in one run; times are medians.

Ours is the step of `jaxcold.models.sasrec` with bounded deltas, dropout and the full loss. It is
held against

- the dense step: the same model on rectangles padded to the longest sequence of the batch, with the
  logits of all slots and items in one array and a cross-entropy of every slot;
- where torch is importable, that in PyTorch, as the published code has it: padded on the left,
  attention from `torch.nn`, no item as a class. It comes last, beside our step once more: idle
  threads of the two slow each other. Without dropout its losses are compared with those of our
  step in the published form.

Where the dense forms do not fit into memory at the whole batch, they run at two smaller ones, and
their time is the straight line through both; the compiler still says what memory the whole takes.

A step over R real positions in sequences of lengths n_i, on N items with width d, needs::

    FLOPs = 3 * 2 R N d                   loss: logits, and their gradients in both factors
          + 3 * 2 R 6 d d * blocks        layers: four of the attention, two of the feed-forward
          + 3 * 4 sum(n_i * n_i) d * blocks   attention: logits and mixtures

Executed are, of ours, whole tiles of the loss, all tokens of a batch, and the squares of all
rectangles that attention looks at; of the dense step every slot in all three. The causal half of a
square, which nobody saves, counts as needed. Norms, dropout and the optimizer are overhead.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from jax import Array
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.bench import sasrec_torch
from experiments.bench.timing import median_times, processors
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split import windows
from jaxcold.models import sasrec
from jaxcold.models.sequence_encoder import SASRec
from jaxcold.sparse import fenchel_young_loss
from jaxcold.sparse.linear.summed import tile_rows
from jaxcold.train.step import TrainState, init_state, make_step
from jaxcold.types import Csr, MissingDataError, Model

RATE, MAX_DELTA_NORM, SEED = 1e-3, 0.5, 0
PARTS = ("loss", "layers", "attention")


class Sizes(NamedTuple):
    """The size of everything."""

    items: int
    dim: int
    max_length: int
    batch: int
    dense_batch: int  # the dense forms run at this; below `batch`, their time is extrapolated
    full: bool  # every sequence has max_length inputs; else lengths are Beauty's
    dropout: float = 0.3
    blocks: int = 2
    turns: int = 8  # batches that the runs take in turn


SIZES = {
    "beauty": Sizes(10_286, 64, 32, 128, 128, full=False),
    "zvuk": Sizes(131_085, 128, 128, 128, 16, full=True, turns=2),
}


class Measured(NamedTuple):
    """Of the forms "ours" and "dense", and "torch" where it ran."""

    sizes: Sizes
    seconds: dict[str, float]  # of a step of the whole batch
    over_ours: dict[str, float]  # the same over ours, each beside ours
    temporary: dict[str, int]  # bytes that the compiled step of the whole batch asks for
    first_loss: dict[str, float]  # of the first batch that was run, fresh parameters
    needed: dict[str, float]  # part of PARTS -> FLOPs of a step, the mean of the batches
    executed: dict[str, dict[str, float]]  # form -> the same
    matmul: dict[str, float]  # product at the loss's shapes -> FLOP/s
    torch_gap: float | None = None  # see `torch_gap`; None where torch did not run

    @property
    def achieved(self) -> float:
        """FLOP/s of our step, counting what it needs."""
        return sum(self.needed.values()) / self.seconds["ours"]

    @property
    def share_of_peak(self) -> float:
        """The same over the best product."""
        return self.achieved / max(self.matmul.values())

    def real(self, form: str, part: str) -> float:
        """Share of a part's FLOPs that is spent on real positions."""
        return self.needed[part] / self.executed[form][part]


def draw_lengths(sizes: Sizes, count: int) -> np.ndarray:
    """Inputs of `count` sequences, from 1 to ``max_length``.

    Without the data set, log-normal ones: of like mean, and four fifths of a batch's rectangle are
    padding too.
    """
    rng = np.random.default_rng(SEED)
    if sizes.full:
        return np.full(count, sizes.max_length)
    try:
        beauty = load_sequences("amazon-beauty", protocol="random_cold", mode="none")
        lengths = rng.choice(beauty.train.counts - 1, count)
    except MissingDataError:
        lengths = 1 + np.exp(rng.normal(1.55, 0.7, count)).astype(int)
    return np.clip(lengths, 1, sizes.max_length)


def generate(sizes: Sizes, lengths: np.ndarray) -> SequenceDataset:
    """Training sequences of that many inputs, items at random, and random content of width d."""
    rng = np.random.default_rng(SEED)
    indptr = np.concatenate([[0], np.cumsum(lengths + 1)])
    items = rng.integers(0, sizes.items, indptr[-1], dtype=np.int32)
    none = np.zeros(0, np.int32)
    nothing = EvalSequences(none, Csr(np.zeros(1, np.int64), none), none)
    content = rng.standard_normal((sizes.items, sizes.dim), np.float32)
    return SequenceDataset(
        "generated",
        sizes.items,
        sizes.items,
        Csr(indptr, items),
        nothing,
        nothing,
        content,
        np.arange(len(lengths)),
        np.arange(sizes.items),
        {},
    )


def build(dataset: SequenceDataset, sizes: Sizes, alpha: float, **options: Any) -> Model:
    """Content with bounded deltas; options of `jaxcold.models.sasrec.build` on top."""
    return sasrec.build(
        dataset,
        batch_size=sizes.batch,
        epochs=1,
        learning_rate=RATE,
        item_table="delta",
        max_delta_norm=MAX_DELTA_NORM,
        alpha=alpha,
        dim=sizes.dim,
        max_length=sizes.max_length,
        blocks=sizes.blocks,
        dropout=sizes.dropout,
        reduce="never",
        **options,
    )


def densified(model: Model, sizes: Sizes, alpha: float) -> Model:
    """The same model with the logits of all slots and items in one array."""

    def make() -> SASRec:
        return SASRec(
            sizes.items,
            sizes.dim,
            sizes.max_length,
            item_table="delta",
            blocks=sizes.blocks,
            heads=1,
            dropout=sizes.dropout,
            rngs=nnx.Rngs(params=jax.random.key(0)),
        )

    graphdef, _ = nnx.split(nnx.eval_shape(make))

    def loss(
        params: Any,
        model_state: Any,
        constants: sasrec.Constants,
        tokens: packing.Tokens,
        key: Array,
    ) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
        module = nnx.merge(graphdef, params["main"])
        table = module.table(constants.content)
        logits = module(table, tokens, jax.random.split(key)[0]) @ table[1:].T
        target = jnp.maximum(tokens.target - 1, 0)
        if alpha == 1:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        else:
            losses = fenchel_young_loss(logits, target, alpha)
        real = tokens.target > 0
        total = jnp.sum(jnp.where(real, losses, 0))
        return total, (jnp.sum(real, dtype=logits.dtype), model_state, {})

    return model._replace(losses={"main": loss})


def packed(rows: Csr, sizes: Sizes, capacity: packing.Capacity) -> packing.Tokens:
    """A batch as our step takes it."""
    return packing.pack(*packing.inputs_and_targets(rows), capacity)


def padded(rows: Csr, *, left: bool = False) -> packing.Tokens:
    """A batch as one rectangle."""
    inputs, targets = packing.inputs_and_targets(rows)
    return packing.pad_left_or_right(
        inputs, targets, inputs.rows, int(inputs.counts.max()), left=left
    )


def _shape(batch: Any) -> tuple[Any, ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def programs(model: Model, start: TrainState, batches: Iterable[Any]) -> dict[tuple[Any, ...], Any]:
    """Compiled steps by the shapes of a batch."""
    step: Any = make_step(model)
    key = jax.random.key(SEED)
    kinds = {_shape(batch): batch for batch in batches}
    return {
        kind: step.lower(start, model.constants, batch, key).compile()
        for kind, batch in kinds.items()
    }


def temporary_bytes(compiled: Iterable[Any]) -> int:
    """Scratch space of the largest program."""
    return max(int(program.memory_analysis().temp_size_in_bytes) for program in compiled)


def stepper(
    model: Model, start: TrainState, compiled: dict[tuple[Any, ...], Any], batches: Sequence[Any]
) -> Callable[[], float]:
    """A function that trains one step, waits for all of it, and returns the loss."""
    state, key = jax.tree.map(jnp.copy, start), jax.random.key(SEED)  # steps donate their state
    turn = itertools.cycle([(_shape(batch), jax.device_put(batch)) for batch in batches])

    def once() -> float:
        nonlocal state
        kind, batch = next(turn)
        state, metrics = jax.block_until_ready(compiled[kind](state, model.constants, batch, key))
        return float(metrics["loss"])

    return once


def torch_stepper(model: Model, sizes: Sizes, batches: Sequence[Csr]) -> Callable[[], float]:
    """The step of `sasrec_torch` on windows, with the model's content and initial parameters."""
    params = model.init(SEED)[0]["main"]
    rectangles = []
    for rows in batches:
        tokens = padded(rows, left=True)
        rectangles.append(tuple(t.reshape(rows.rows, -1) for t in (tokens.item, tokens.target)))
    content = np.asarray(model.constants.content)
    return sasrec_torch.stepper(params, content, rectangles, sizes.dropout, RATE, MAX_DELTA_NORM)


def torch_gap(dataset: SequenceDataset, sizes: Sizes, rows: Csr) -> float:
    """Largest relative difference between the losses of our first three steps and of PyTorch's.

    Ours are in the published form. The second and third loss see one and two updates and bounds of
    all parameters. Nothing is dropped: the two draw other numbers.

    Args:
        dataset: of the model.
        sizes: of the model.
        rows: windows of the one batch that is trained on.
    """
    still = sizes._replace(dropout=0.0)
    model = build(dataset, still, 1.0, reference=True)
    batches = [padded(rows, left=True)]
    start = init_state(model, SEED)
    ours = stepper(model, start, programs(model, start, batches), batches)
    theirs = torch_stepper(model, still, [rows])
    pairs = [(ours(), theirs()) for _ in range(3)]
    return max(abs(theirs / ours - 1) for ours, theirs in pairs)


def flops(sizes: Sizes, rows: float, tokens: float, squares: float) -> dict[str, float]:
    """FLOPs of a step by part, for rows of logits, tokens, and squares that attention looks at."""
    d = sizes.dim
    return {
        "loss": 3 * 2 * rows * sizes.items * d,
        "layers": 3 * 2 * tokens * 6 * d * d * sizes.blocks,
        "attention": 3 * 4 * squares * d * sizes.blocks,
    }


def counted(
    sizes: Sizes, batches: Sequence[Csr], ours: Sequence[packing.Tokens]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What a step needs, and what the forms execute: means over the batches.

    Args:
        sizes: of the model.
        batches: windows.
        ours: the same as our step takes them.
    """
    kinds: dict[str, list[dict[str, float]]] = {"needed": [], "ours": [], "dense": []}
    for windows_, tokens in zip(batches, ours, strict=True):
        lengths = windows_.counts - 1
        real, size = int(lengths.sum()), len(tokens.item)
        tile = tile_rows(size, sizes.items)
        squares = sum(r.shape[0] * r.shape[1] ** 2 for r in tokens.buckets)
        n, longest = len(lengths), int(lengths.max())
        kinds["needed"].append(flops(sizes, real, real, float((lengths**2).sum())))
        kinds["ours"].append(flops(sizes, -(-real // tile) * tile, size, squares))
        kinds["dense"].append(flops(sizes, n * longest, n * longest, n * longest**2))
    means = {
        kind: {part: float(np.mean([one[part] for one in each])) for part in PARTS}
        for kind, each in kinds.items()
    }
    return means.pop("needed"), means


def matmuls(sizes: Sizes, tokens: int) -> dict[str, Callable[[], Any]]:
    """The three products of a tile of the loss, compiled."""
    rows = tile_rows(tokens, sizes.items)
    keys = jax.random.split(jax.random.key(SEED), 3)
    h, W, p = (
        jax.random.normal(key, shape)
        for key, shape in zip(
            keys, [(rows, sizes.dim), (sizes.items, sizes.dim), (rows, sizes.items)], strict=True
        )
    )
    logits = jax.jit(lambda h, W: h @ W.T)
    hidden = jax.jit(lambda p, W: p @ W)
    table = jax.jit(lambda p, h: h.T @ p)
    return {
        "logits": lambda: logits(h, W),
        "gradient of hidden states": lambda: hidden(p, W),
        "gradient of the table": lambda: table(p, h),
    }


def measure(sizes: Sizes, alpha: float, repeats: int) -> Measured:
    """Compiles, warms up and measures everything in turn.

    Args:
        sizes: of the data and the model.
        alpha: of the loss; PyTorch runs at 1 alone.
        repeats: runs of each measurement.
    """
    dataset = generate(sizes, draw_lengths(sizes, sizes.turns * sizes.batch))
    model = build(dataset, sizes, alpha)
    dense = densified(model, sizes, alpha)
    rows = windows(dataset.train, sizes.max_length, "last")
    capacity = packing.capacity_for(rows.counts - 1, sizes.batch)
    start = init_state(model, SEED)

    def cut(batch: int) -> list[Csr]:
        return [rows.take(np.arange(i * batch, (i + 1) * batch)) for i in range(sizes.turns)]

    whole = cut(sizes.batch)
    ours = [packed(rows, sizes, capacity) for rows in whole]
    # The line through one point, or two, that the dense forms run at.
    runs = reduced(sizes) if sizes.dense_batch < sizes.batch else [sizes.batch]
    compiled = programs(model, start, ours)
    steps = {"ours": stepper(model, start, compiled, ours)}
    temporary = {"ours": temporary_bytes(compiled.values())}
    for batch in runs:
        rectangles = [padded(part) for part in cut(batch)]
        compiled = programs(dense, start, rectangles)
        temporary["dense"] = temporary_bytes(compiled.values())
        steps[f"dense {batch}"] = stepper(dense, start, compiled, rectangles)
    if runs != [sizes.batch]:  # compiled without being run
        compiled = programs(dense, start, [padded(part) for part in whole])
        temporary["dense"] = temporary_bytes(compiled.values())
    products = matmuls(sizes, len(ours[0].item))
    first_loss = {name.split()[0]: once() for name, once in steps.items()}
    for once in products.values():
        jax.block_until_ready(once())  # compiles; the steps are compiled and have run once
    found = median_times({**products, **steps}, repeats, warm_up=0)
    seconds = {"ours": found["ours"], "dense": extrapolated("dense", runs, found, sizes.batch)}
    over_ours = {"ours": 1.0, "dense": seconds["dense"] / seconds["ours"]}
    gap = None
    if alpha == 1 and importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(processors())
        theirs = {f"torch {batch}": torch_stepper(model, sizes, cut(batch)) for batch in runs}
        first_loss["torch"] = [once() for once in theirs.values()][-1]
        beside = {"ours": steps["ours"], **theirs}
        found_beside = median_times(beside, max(1, repeats // 3), warm_up=0)
        seconds["torch"] = extrapolated("torch", runs, found_beside, sizes.batch)
        over_ours["torch"] = seconds["torch"] / found_beside["ours"]
        gap = torch_gap(dataset, sizes, cut(runs[0])[0])
    needed, executed = counted(sizes, whole, ours)
    product = 2 * tile_rows(len(ours[0].item), sizes.items) * sizes.items * sizes.dim
    return Measured(
        sizes=sizes,
        seconds=seconds,
        over_ours=over_ours,
        temporary=temporary,
        first_loss=first_loss,
        needed=needed,
        executed=executed,
        matmul={name: product / found[name] for name in products},
        torch_gap=gap,
    )


def reduced(sizes: Sizes) -> list[int]:
    """Batches that the dense forms run at where the whole one does not fit."""
    return [max(sizes.dense_batch // 4, 1), sizes.dense_batch]


def extrapolated(form: str, runs: Sequence[int], found: dict[str, float], batch: int) -> float:
    """Seconds at the whole batch, from the one or two that were run."""
    small, large = runs[0], runs[-1]
    low, high = found[f"{form} {small}"], found[f"{form} {large}"]
    return high if small == large else low + (high - low) / (large - small) * (batch - small)


def show(name: str, m: Measured, console: Console) -> None:
    """Prints the report."""

    def table(first: str, *others: str) -> Table:
        made = Table(box=SIMPLE_HEAD)
        made.add_column(first, no_wrap=True)
        for column in others:
            made.add_column(column, justify="right", no_wrap=True)
        return made

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    s = m.sizes
    padding = 1 - m.needed["layers"] / m.executed["dense"]["layers"]
    partial = s.dense_batch < s.batch
    say(f"{name}: {s.items:,} items, d = {s.dim}, length {s.max_length}, batch {s.batch}")
    say(f"{padding:.0%} of the dense step's slots are padding")
    forms = table("step", "ms", "over ours", "temporary MB", "ours over it")
    for form, spent in m.seconds.items():
        memory = m.temporary.get(form)
        forms.add_row(
            form + (" *" if partial and form != "ours" else ""),
            f"{spent * 1e3:,.1f}",
            f"{m.over_ours[form]:.2f}",
            "" if memory is None else f"{memory / 1e6:,.1f}",
            "" if memory is None else f"{m.temporary['ours'] / memory:.4f}",
        )
    console.print(forms)
    if partial:
        say(
            f"* not run at batch {s.batch}: the line through batches {reduced(s)[0]} and "
            f"{reduced(s)[1]}; memory is the compiler's, at {s.batch}"
        )
    if m.torch_gap is None:
        say("torch: skipped; it has to be importable, and --alpha=1")
    else:
        say(f"torch: its first three losses without dropout are ours within {m.torch_gap:.1e}")
    say("goals: dense over ours >= 5 on beauty; ours over dense in memory <= 0.1 at zvuk")

    shares = table("FLOPs on real positions / executed", "GFLOP needed", "ours", "dense")
    for part in PARTS:
        needed = f"{m.needed[part] / 1e9:,.3f}"
        shares.add_row(part, needed, *(f"{m.real(form, part):.1%}" for form in ("ours", "dense")))
    total = sum(m.needed.values())
    whole = (f"{total / sum(m.executed[form].values()):.1%}" for form in ("ours", "dense"))
    shares.add_row("all", f"{total / 1e9:,.3f}", *whole)
    console.print(shares)
    say("goal: all")

    peak = table("float32 at the loss's shapes", "GFLOP/s")
    for product, rate in m.matmul.items():
        peak.add_row(product, f"{rate / 1e9:.1f}")
    peak.add_row("our whole step", f"{m.achieved / 1e9:.1f}")
    peak.add_row("over the best product", f"{m.share_of_peak:.1%}")
    console.print(peak)
    say("goal: over the best product >= 50 %\n")


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # not a line for each kind of device that is absent
    for name in SIZES if values.size == "both" else [values.size]:
        show(name, measure(SIZES[name], values.alpha, values.repeats), Console())


if __name__ == "__main__":
    flags.DEFINE_enum("size", "both", [*SIZES, "both"], "what to measure")
    flags.DEFINE_integer("repeats", 7, "runs of each measurement", lower_bound=1)
    flags.DEFINE_float("alpha", 1.0, "of the loss", lower_bound=1.0, upper_bound=2.0)
    app.run(main)
