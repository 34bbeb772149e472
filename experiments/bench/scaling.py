"""Bytes that a step stores and sends on several devices: ``python -m experiments.bench.scaling``.

Weak scaling on 1, 2, 4 and 8 simulated devices: batch and catalogue grow with their number. The
bytes are read from the compiled programs and compared with the formulas of `jaxcold.parallel`.
Nothing is timed, because simulated devices share the cores of one machine.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

# Before the first import of jax, which reads it once.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from absl import app

from experiments.bench import sasrec_step, semco_step
from experiments.bench.hlo import Collective, collectives
from jaxcold import parallel
from jaxcold.models import semco as semco_model
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Model

SEMCO = semco_step.Sizes(users=300, items=1280, pairs=4000, dim=64, hidden=24, out=16, batch=64)
SASREC = sasrec_step.Sizes(1000, 16, 12, 16, 16, full=False, dropout=0.0, blocks=1)
GOAL = 0.05


class Cost(NamedTuple):
    """Bytes of a step on each of n devices."""

    stored: float  # arguments of the program: parameters, optimizer, fixed arrays, batch
    sent: float  # to others


class Measured(NamedTuple):
    """A compiled step against the formulas."""

    cost: Cost
    formula: Cost
    looped: list[Collective]  # collective operations inside loops

    @property
    def gap(self) -> float:
        """The larger relative difference."""
        pairs = zip(self.cost, self.formula, strict=True)
        return max(abs(cost - formula) / max(formula, 1) for cost, formula in pairs)


def semco_cost(
    n: int,
    *,
    users: int,
    items: int,
    features: int,
    hidden: int,
    out: int,
    batch: int,
    pairs: int,
    entries: float,
    slots: int,
) -> Cost:
    """Of SEMCo with one mode and Adam.

    Args:
        n: devices.
        users: U.
        items: N, training items.
        features: D.
        hidden: h.
        out: d.
        batch: B.
        pairs: of the batch; of the whole epoch on one device without a mesh.
        entries: history entries of the fullest device, nnz / n where items are alike.
        slots: places for history entries of a batch on a device.
    """
    params = features * hidden + 2 * hidden + hidden * out + out
    stored = (
        4 * features * items / n  # features
        + 4 * entries + 8 * users  # histories, and how long they are
        + 4 * features * (features + 1)  # moments
        + 12 * params  # with Adam's moments
        + 12 * pairs  # users, items and weights
        + 4 * slots
    )  # fmt: skip
    return Cost(stored, (n - 1) / n * (6 * 4 * batch * out + 2 * 4 * params))


def sasrec_cost(
    n: int,
    *,
    items: int,
    dim: int,
    max_length: int,
    blocks: int,
    tokens: int,
    slots: int,
    split: bool,
) -> Cost:
    """Of SASRec with deltas, softmax and Adam.

    Args:
        n: devices.
        items: N, rows of the table.
        dim: d.
        max_length: positions.
        blocks: of the transformer.
        tokens: T, of all devices.
        slots: places of the attention's length buckets, of all devices.
        split: the table is.
    """
    dense = max_length * dim + blocks * (6 * dim * (dim + 1) + 4 * dim) + 2 * dim
    table = items * dim
    stored = 12 * dense + 4 * 4 * table / (n if split else 1) + 4 * (4 * tokens + slots) / n
    if split:
        # Embeddings and hidden states there and back; ids and targets; largest logits and masses.
        sent = 4 * 4 * tokens * dim + 2 * 4 * tokens + 2 * 2 * 4 * tokens + 2 * 4 * dense
    else:
        sent = 2 * 4 * (dense + table)
    return Cost(stored, (n - 1) / n * sent)


def _compiled(model: Model) -> tuple[Any, Any]:
    batch = next(iter(model.batches(np.random.default_rng(0))))
    step: Any = make_step(model)
    state = init_state(model, 0)
    return batch, step.lower(state, model.constants, batch, jax.random.key(0)).compile()


def _measured(program: Any, devices: parallel.Devices, formula: Cost) -> Measured:
    moves = collectives(program.as_text(), devices.n)
    stored = program.memory_analysis().argument_size_in_bytes
    sent = sum(move.moved(devices.n) for move in moves)
    return Measured(Cost(stored, sent), formula, [move for move in moves if move.looped])


def semco(devices: parallel.Devices, sizes: semco_step.Sizes = SEMCO, **options: Any) -> Measured:
    """A step of SEMCo; the sizes are those of one device."""
    n = devices.n
    sizes = sizes._replace(items=n * sizes.items, pairs=n * sizes.pairs, batch=n * sizes.batch)
    dataset = semco_step.generate(sizes)
    model = semco_model.build(
        dataset,
        batch_size=sizes.batch,
        epochs=1,
        l2=0.0,
        alpha=2.0,
        tau=5.0,
        hidden=sizes.hidden,
        out=sizes.out,
        devices=devices,
        **options,
    )
    batch, program = _compiled(model)
    formula = semco_cost(
        n,
        users=sizes.users,
        items=sizes.warm,
        features=sizes.dim,
        hidden=sizes.hidden,
        out=sizes.out,
        batch=sizes.batch,
        pairs=batch.epoch.user.size,
        entries=model.constants.indices.size / n,
        slots=batch.epoch.slots.size,
    )
    return _measured(program, devices, formula)


def sasrec(
    devices: parallel.Devices, sizes: sasrec_step.Sizes = SASREC, alpha: float = 1.0
) -> Measured:
    """A step of SASRec; the sizes are those of one device."""
    n = devices.n
    sizes = sizes._replace(items=n * sizes.items, batch=n * sizes.batch)
    lengths = sasrec_step.draw_lengths(sizes, 4 * sizes.batch)
    dataset = sasrec_step.generate(sizes, lengths)
    model = sasrec_step.build(dataset, sizes, alpha, devices=devices)
    batch, program = _compiled(model)
    formula = sasrec_cost(
        n,
        items=len(model.constants.content),
        dim=sizes.dim,
        max_length=sizes.max_length,
        blocks=sizes.blocks,
        tokens=batch.item.size,
        slots=sum(bucket.size for bucket in batch.buckets),
        split=devices.shard_items,
    )
    return _measured(program, devices, formula)


def plan() -> list[str]:
    """The formulas at 10 million items with 1024 features on 256 devices."""
    n, items = 256, 10_000_000
    base = semco_cost(
        n,
        users=10_000_000,
        items=items,
        features=1024,
        hidden=192,
        out=64,
        batch=16_384,
        pairs=16_384,
        entries=200_000_000 / n,
        slots=16_384 * 20 // n,
    )
    sequences = sasrec_cost(
        n,
        items=items,
        dim=128,
        max_length=64,
        blocks=2,
        tokens=256 * 128 * 32,
        slots=256 * 128 * 64,
        split=True,
    )
    return [
        f"{name}, {items:.0e} items on {n} devices: {cost.stored / 2**30:.2f} GiB stored, "
        f"{cost.sent / 2**20:.0f} MiB sent a step"
        for name, cost in (("SEMCo, 1024 features", base), ("SASRec, d = 128", sequences))
    ]


def main(argv: list[str]) -> None:
    """Prints the table, and the formulas' results at the size of `plan`."""
    del argv
    kinds: dict[str, Callable[[parallel.Devices], Measured]] = {"SEMCo": semco, "SASRec": sasrec}
    print(
        f"{'model':20}{'devices':>8}{'stored':>12}{'formula':>12}{'sent':>12}{'formula':>12}  gap"
    )
    for name, kind in kinds.items():
        for shard_items in (False, True) if name == "SASRec" else (False,):
            for n in (1, 2, 4, 8):
                devices = parallel.choose("shard_map", count=n, shard_items=shard_items)
                measured = kind(devices)
                row = f"{name + (', split' if shard_items else ''):20}{n:8}"
                for cost, formula in zip(measured.cost, measured.formula, strict=True):
                    row += f"{cost:12,.0f}{formula:12,.0f}"
                loops = f"; {len(measured.looped)} exchanges in loops" if measured.looped else ""
                print(f"{row}  {measured.gap:.1%}{loops}", flush=True)
    print(*plan(), sep="\n")


if __name__ == "__main__":
    app.run(main)
