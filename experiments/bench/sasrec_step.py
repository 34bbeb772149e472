"""Speed and memory of SASRec's training step: ``python -m experiments.bench.sasrec_step``.

Two sizes: "beauty", whose sequences are short and of unequal length, and "zvuk", where all are full
and the catalogue is large. Items are drawn at random; Beauty's lengths are the real ones where the
data set is installed. Every round of one run calls each form once; times are medians.

Ours is the step of `jaxcold.models.sasrec` with bounded deltas, dropout and the full loss. It is
compared with

- the dense step: the same model on padded batches, as long as their longest sequence, with the
  logits of all slots and items in one array and a cross-entropy of every slot;
- where torch is importable, that in PyTorch, as the published code has it: padded on the left,
  attention from `torch.nn`, no item as a class. It comes last, beside our step once more: idle
  threads of the two slow each other. Without dropout its losses are compared with those of our
  step in the published form.

Where the dense forms do not fit into memory at the whole batch, they run at two smaller ones, and
their time is the straight line through both; the memory of the whole is read from the compiler.

A step over R real positions in sequences of lengths n_i, on N items with width d, needs::

    FLOPs = 3 * 2 R N d                   loss: logits, and their gradients in both factors
          + 3 * 2 R 6 d d * blocks        layers: four of the attention, two of the feed-forward
          + 3 * 4 sum(n_i * n_i) d * blocks   attention: logits and mixtures

Our step executes whole tiles of the loss, all tokens of a batch, and the square of every row of the
length buckets; the dense step every slot in all three. The masked half of a square, which neither
form saves, counts as needed. Norms, dropout and the optimizer are overhead.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from jax import Array

from experiments.bench.timing import Stepper, median_times, processors
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
    batches: int = 8  # that every form cycles through

    @property
    def dense_batches(self) -> list[int]:
        """Batch sizes at which the dense forms run: one, or two below a batch that does not fit."""
        if self.dense_batch >= self.batch:
            return [self.batch]
        return [max(self.dense_batch // 4, 1), self.dense_batch]


SIZES = {
    "beauty": Sizes(10_286, 64, 32, 128, 128, full=False),
    "zvuk": Sizes(131_085, 128, 128, 128, 16, full=True, batches=2),
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
    torch_gap: float | None = None  # see `compare_torch_losses`; None where torch did not run

    @property
    def achieved(self) -> float:
        """FLOP/s of our step, counting what it needs."""
        return sum(self.needed.values()) / self.seconds["ours"]

    @property
    def fraction_of_peak(self) -> float:
        """The same over the best product."""
        return self.achieved / max(self.matmul.values())

    def real(self, form: str, part: str) -> float:
        """Fraction of a part's FLOPs that is spent on real positions."""
        return self.needed[part] / self.executed[form][part]


def draw_lengths(sizes: Sizes, count: int) -> np.ndarray:
    """Inputs of `count` sequences, from 1 to ``max_length``.

    Without the data set they are log-normal with a similar mean: four fifths of a padded batch are
    padding then too.
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
    no_items = np.zeros(0, np.int32)
    no_sequences = EvalSequences(no_items, Csr(np.zeros(1, np.int64), no_items), no_items)
    content = rng.standard_normal((sizes.items, sizes.dim), np.float32)
    train = Csr(indptr, items)
    ids = np.arange(len(lengths)), np.arange(sizes.items)
    return SequenceDataset(
        "generated", sizes.items, sizes.items, train, no_sequences, no_sequences, content, *ids, {}
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


def make_dense(model: Model, sizes: Sizes, alpha: float) -> Model:
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

    def loss(params: Any, model_state: Any, constants: Any, tokens: Any, key: Array) -> Any:
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


def pack(rows: Csr, capacity: packing.Capacity) -> packing.Tokens:
    """The batch of our step."""
    return packing.pack(*packing.inputs_and_targets(rows), capacity)


def pad(rows: Csr, *, left: bool = False) -> packing.Tokens:
    """The batch of the dense step, every row as long as the longest."""
    inputs, targets = packing.inputs_and_targets(rows)
    return packing.pad_left_or_right(
        inputs, targets, inputs.rows, int(inputs.counts.max()), left=left
    )


def compile_steps(model: Model, start: TrainState, batches: Iterable[Any]) -> list[Any]:
    """The compiled step of every batch: one program for those of one shape."""
    step: Any = make_step(model)
    key = jax.random.key(SEED)
    compiled: dict[tuple[Any, ...], Any] = {}
    result = []
    for batch in batches:
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shape not in compiled:
            compiled[shape] = step.lower(start, model.constants, batch, key).compile()
        result.append(compiled[shape])
    return result


def temporary_bytes(compiled: Iterable[Any]) -> int:
    """Scratch space of the largest program."""
    return max(int(program.memory_analysis().temp_size_in_bytes) for program in compiled)


def make_stepper(
    model: Model, start: TrainState, compiled: Sequence[Any], batches: Sequence[Any]
) -> Stepper:
    """The compiled steps on a cycle of their batches, from a copy of the state."""
    state = jax.tree.map(jnp.copy, start)  # steps donate their state
    steps = list(zip(compiled, map(jax.device_put, batches), strict=True))
    return Stepper(state, model.constants, steps, SEED)


def make_torch_step(model: Model, sizes: Sizes, batches: Sequence[Csr]) -> Callable[[], float]:
    """PyTorch's step on windows, with the model's content and initial parameters."""
    from experiments.bench.torch_steps import SASRecStep

    pairs = []
    for rows in batches:
        tokens = pad(rows, left=True)
        pairs.append(tuple(t.reshape(rows.rows, -1) for t in (tokens.item, tokens.target)))
    return SASRecStep(
        model.init(SEED)[0]["main"],
        np.asarray(model.constants.content),
        pairs,
        dropout=sizes.dropout,
        learning_rate=RATE,
        max_delta_norm=MAX_DELTA_NORM,
    )


def compare_torch_losses(dataset: SequenceDataset, sizes: Sizes, rows: Csr) -> float:
    """Largest relative difference between the losses of our first three steps and of PyTorch's.

    Ours are in the published form. The second and third loss see one and two updates and bounds of
    all parameters. Nothing is dropped: the two draw other numbers.

    Args:
        dataset: of the model.
        sizes: of the model.
        rows: windows of the one batch that is trained on.
    """
    sizes = sizes._replace(dropout=0.0)
    model = build(dataset, sizes, 1.0, reference=True)
    batches = [pad(rows, left=True)]
    start = init_state(model, SEED)
    step = make_stepper(model, start, compile_steps(model, start, batches), batches)
    torch_step = make_torch_step(model, sizes, [rows])
    return max(abs(torch_step() / step() - 1) for _ in range(3))


def flops(sizes: Sizes, rows: float, tokens: float, squares: float) -> dict[str, float]:
    """FLOPs of a step by part, for rows of logits, tokens, and squares of the attention."""
    d = sizes.dim
    return {
        "loss": 3 * 2 * rows * sizes.items * d,
        "layers": 3 * 2 * tokens * 6 * d * d * sizes.blocks,
        "attention": 3 * 4 * squares * d * sizes.blocks,
    }


def count_flops(
    sizes: Sizes, batches: Sequence[Csr], ours: Sequence[packing.Tokens]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What a step needs, and what the forms execute: means over the batches.

    Args:
        sizes: of the model.
        batches: windows.
        ours: the same, packed for our step.
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


def make_matmuls(sizes: Sizes, tokens: int) -> dict[str, Callable[[], Any]]:
    """The three products of a tile of the loss, compiled."""
    rows = tile_rows(tokens, sizes.items)
    keys = jax.random.split(jax.random.key(SEED), 3)
    shapes = [(rows, sizes.dim), (sizes.items, sizes.dim), (rows, sizes.items)]
    h, W, p = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    logits = jax.jit(lambda h, W: h @ W.T)
    hidden = jax.jit(lambda p, W: p @ W)
    table = jax.jit(lambda p, h: h.T @ p)
    return {
        "logits": lambda: logits(h, W),
        "gradient of hidden states": lambda: hidden(p, W),
        "gradient of the table": lambda: table(p, h),
    }


def take_batches(rows: Csr, sizes: Sizes, batch: int) -> list[Csr]:
    """The first batches of windows, of that many rows each."""
    return [rows.take(np.arange(i * batch, (i + 1) * batch)) for i in range(sizes.batches)]


def make_steps(
    model: Model, sizes: Sizes, alpha: float, rows: Csr, ours: Sequence[packing.Tokens]
) -> tuple[dict[str, Stepper], dict[str, int]]:
    """Steps by form, "ours" and "dense BATCH", and temporary bytes at the whole batch, by form.

    Args:
        model: ours.
        sizes: of the model.
        alpha: of the loss.
        rows: windows of all sequences.
        ours: our step's batches.
    """
    start = init_state(model, SEED)
    compiled = compile_steps(model, start, ours)
    steps = {"ours": make_stepper(model, start, compiled, ours)}
    temporary = {"ours": temporary_bytes(compiled)}
    dense = make_dense(model, sizes, alpha)
    for batch in sorted({*sizes.dense_batches, sizes.batch}):
        padded = [pad(windows_) for windows_ in take_batches(rows, sizes, batch)]
        compiled = compile_steps(dense, start, padded)
        if batch in sizes.dense_batches:  # else it is compiled without being run
            steps[f"dense {batch}"] = make_stepper(dense, start, compiled, padded)
    return steps, temporary | {"dense": temporary_bytes(compiled)}


def measure_torch(
    model: Model, dataset: SequenceDataset, sizes: Sizes, rows: Csr, ours: Stepper, repeats: int
) -> tuple[float, float, float, float]:
    """Seconds of PyTorch's step, the same over ours, its first loss, and `compare_torch_losses`.

    The arguments are those of `make_steps`, and our step, which is measured in the same rounds.
    """
    import torch

    torch.set_num_threads(processors())
    steps = {
        f"torch {batch}": make_torch_step(model, sizes, take_batches(rows, sizes, batch))
        for batch in sizes.dense_batches
    }
    first_loss = [step() for step in steps.values()][-1]
    times = median_times({"ours": ours, **steps}, repeats, warm_up=0)
    seconds = extrapolate("torch", sizes.dense_batches, times, sizes.batch)
    gap = compare_torch_losses(dataset, sizes, take_batches(rows, sizes, sizes.dense_batches[0])[0])
    return seconds, seconds / times["ours"], first_loss, gap


def measure(sizes: Sizes, alpha: float, repeats: int) -> Measured:
    """Compiles, warms up and measures everything.

    Args:
        sizes: of the data and the model.
        alpha: of the loss; PyTorch runs at 1 alone.
        repeats: runs of each measurement.
    """
    dataset = generate(sizes, draw_lengths(sizes, sizes.batches * sizes.batch))
    model = build(dataset, sizes, alpha)
    rows = windows(dataset.train, sizes.max_length, "last")
    capacity = packing.capacity_for(rows.counts - 1, sizes.batch)
    whole = take_batches(rows, sizes, sizes.batch)
    ours = [pack(windows_, capacity) for windows_ in whole]
    steps, temporary = make_steps(model, sizes, alpha, rows, ours)
    products = make_matmuls(sizes, len(ours[0].item))
    first_loss = {name.split()[0]: step() for name, step in steps.items()}
    for multiply in products.values():
        jax.block_until_ready(multiply())  # compiles; the steps are compiled and have run once
    times = median_times({**products, **steps}, repeats, warm_up=0)
    seconds = {
        "ours": times["ours"],
        "dense": extrapolate("dense", sizes.dense_batches, times, sizes.batch),
    }
    over_ours = {"ours": 1.0, "dense": seconds["dense"] / seconds["ours"]}
    gap = None
    if alpha == 1 and importlib.util.find_spec("torch"):
        rounds = max(1, repeats // 3)
        torch = measure_torch(model, dataset, sizes, rows, steps["ours"], rounds)
        seconds["torch"], over_ours["torch"], first_loss["torch"], gap = torch
    needed, executed = count_flops(sizes, whole, ours)
    product = 2 * tile_rows(len(ours[0].item), sizes.items) * sizes.items * sizes.dim
    return Measured(
        sizes=sizes,
        seconds=seconds,
        over_ours=over_ours,
        temporary=temporary,
        first_loss=first_loss,
        needed=needed,
        executed=executed,
        matmul={name: product / times[name] for name in products},
        torch_gap=gap,
    )


def extrapolate(form: str, runs: Sequence[int], times: dict[str, float], batch: int) -> float:
    """Seconds at the whole batch, from those at the one or two batch sizes that were run."""
    small, large = runs[0], runs[-1]
    low, high = times[f"{form} {small}"], times[f"{form} {large}"]
    return high if small == large else low + (high - low) / (large - small) * (batch - small)


def format_report(name: str, m: Measured) -> list[str]:
    """The report."""
    s, forms = m.sizes, ("ours", "dense")
    padding = 1 - m.needed["layers"] / m.executed["dense"]["layers"]
    partial = s.dense_batch < s.batch
    text = [
        f"{name}: {s.items:,} items, d = {s.dim}, length {s.max_length}, batch {s.batch}",
        f"{padding:.0%} of the dense step's slots are padding",
        "",
        "step            ms   over ours   temporary MB   ours over it",
    ]
    for form, seconds in m.seconds.items():
        mark = " *" if partial and form != "ours" else ""
        line = f"{form + mark:8}{seconds * 1e3:10,.1f}{m.over_ours[form]:12.2f}"
        if memory := m.temporary.get(form):
            line += f"{memory / 1e6:15,.1f}{m.temporary['ours'] / memory:15.4f}"
        text.append(line)
    if partial:
        small, large = s.dense_batches
        text.append(
            f"* not run at batch {s.batch}: the line through batches {small} and {large}; "
            f"memory is the compiler's, at {s.batch}"
        )
    text += [
        "torch: skipped; it has to be importable, and --alpha=1"
        if m.torch_gap is None
        else f"torch: its first three losses without dropout are ours within {m.torch_gap:.1e}",
        "goals: dense over ours >= 5 on beauty; ours over dense in memory <= 0.1 at zvuk",
        "",
        "FLOPs on real positions / executed   GFLOP needed    ours   dense",
    ]
    totals = {form: sum(m.executed[form].values()) for form in forms}
    total = sum(m.needed.values())
    rows = {part: (m.needed[part], [m.real(form, part) for form in forms]) for part in PARTS}
    rows["all"] = (total, [total / totals[form] for form in forms])
    for part, (needed, fractions) in rows.items():
        columns = "".join(f"{fraction:8.1%}" for fraction in fractions)
        text.append(f"{part:34}{needed / 1e9:15,.3f}{columns}")
    return [
        *text,
        "",
        "float32 at the loss's shapes     GFLOP/s",
        *(f"{product:30}{rate / 1e9:10.1f}" for product, rate in m.matmul.items()),
        f"{'our whole step':30}{m.achieved / 1e9:10.1f}",
        f"{'over the best product':30}{m.fraction_of_peak:10.1%}   goal >= 50 %",
        "",
    ]


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # not a line for each kind of device that is absent
    for name in SIZES if values.size == "both" else [values.size]:
        measured = measure(SIZES[name], values.alpha, values.repeats)
        print("\n".join(format_report(name, measured)))


if __name__ == "__main__":
    flags.DEFINE_enum("size", "both", [*SIZES, "both"], "what to measure")
    flags.DEFINE_integer("repeats", 7, "runs of each measurement", lower_bound=1)
    flags.DEFINE_float("alpha", 1.0, "of the loss", lower_bound=1.0, upper_bound=2.0)
    app.run(main)
