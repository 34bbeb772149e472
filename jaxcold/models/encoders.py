"""SEMCo's encoder: from an item's content to its embedding, in training and when served.

A content encoder, or a teacher with a student behind it; what a trained one consists of, as
arrays by name; and embedding items with it.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.2.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data import content as vectors
from jaxcold.models.layers import (
    Affine,
    Compute,
    Dense,
    ModalityFusion,
    ModuleList,
    Moments,
    NormedDense,
    fill_state,
    named_arrays,
    named_shapes,
    product,
    unit_rows,
)

# Rows encoded by one call outside training. One fixed shape means one compiled program, and that
# an item's embedding has the same bits alone and inside the catalogue.
BLOCK = 1024


class ContentEncoder(nnx.Module):
    """f(X_1, .., X_M): per mode Dense, batch norm, ReLU; attention over modes; Dense; unit rows."""

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        out: int,
        attention_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        self.modes = ModuleList([NormedDense(width, hidden, rngs=rngs) for width in widths])
        self.fusion = (
            ModalityFusion(len(widths), hidden, attention_layers, rngs=rngs, compute=compute)
            if len(widths) > 1
            else None
        )
        self.final = Dense(hidden, out, rngs=rngs, compute=compute)
        self.compute = compute

    def fold(self, moments: Sequence[Moments]) -> tuple[Affine, ...]:
        """The first layers with the batch norm of that catalogue folded in."""
        return tuple(mode.fold(m) for mode, m in zip(self.modes, moments, strict=True))

    def __call__(
        self,
        features: Sequence[Array],
        first: Sequence[Affine],
        present: Sequence[Array] | None = None,
    ) -> Array:
        """Embeds items.

        Args:
            features: M arrays [n, D_m] of unit rows.
            first: M folded first layers, from `fold`.
            present: M arrays bool[n], False where the item lacks the mode; None means all there.

        Returns:
            [n, out] unit rows; zero for an item without any mode.
        """
        hidden = [
            jax.nn.relu(product(x, layer.kernel, self.compute) + layer.bias[None, :])
            for x, layer in zip(features, first, strict=True)
        ]
        fused = hidden[0] if self.fusion is None else self.fusion(hidden, present)
        rows = unit_rows(self.final(fused))
        if present is not None:
            rows = jnp.where(jnp.any(jnp.stack(present), axis=0)[:, None], rows, 0.0)
        return rows


class Student(nnx.Module):
    """Dense, ReLU, Dense, unit rows, on the teacher's item embeddings (paper, section 3.3.2)."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        out: int,
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        self.first = Dense(inputs, hidden, rngs=rngs, compute=compute)
        self.second = Dense(hidden, out, rngs=rngs, compute=compute)

    def __call__(self, teacher: Array) -> Array:
        """[n, inputs] -> [n, out] unit rows; a zero row (no content at all) stays zero."""
        rows = unit_rows(self.second(jax.nn.relu(self.first(teacher))))
        return jnp.where(jnp.any(teacher != 0, axis=-1, keepdims=True), rows, 0.0)


class DistilledEncoder(nnx.Module):
    """A content encoder, the teacher, with a student on its outputs: Dense, ReLU, Dense, unit rows.

    Called like `ContentEncoder`; its rows are the student's.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        out: int,
        attention_layers: int,
        student: tuple[int, int],
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        self.teacher = ContentEncoder(
            widths, hidden, out, attention_layers, rngs=rngs, compute=compute
        )
        self.student = Student(out, *student, rngs=rngs, compute=compute)

    def fold(self, moments: Sequence[Moments]) -> tuple[Affine, ...]:
        """As `ContentEncoder.fold`: the student has no batch norm."""
        return self.teacher.fold(moments)

    def __call__(
        self,
        features: Sequence[Array],
        first: Sequence[Affine],
        present: Sequence[Array] | None = None,
    ) -> Array:
        """Embeds items as `ContentEncoder` does: [n, out] unit rows of the student."""
        return self.student(self.teacher(features, first, present))


class Shape(NamedTuple):
    """The sizes of an encoder; from its parameters or before there are any."""

    widths: tuple[int, ...]  # features of each mode
    hidden: int
    out: int
    attention_layers: int = 1
    student: tuple[int, int] | None = None  # hidden and output width; then the rest is the teacher
    compute: Compute = "float32"  # of its products in training; what is served has the default

    def make(self, key: Array) -> ContentEncoder | DistilledEncoder:
        """The encoder with fresh parameters."""
        rngs = nnx.Rngs(params=key)
        if self.student is None:
            return ContentEncoder(*self[:4], rngs=rngs, compute=self.compute)
        return DistilledEncoder(*self[:4], self.student, rngs=rngs, compute=self.compute)

    def split(self) -> tuple[nnx.GraphDef, nnx.State]:
        """Graph and parameters, shapes without values."""
        return nnx.split(nnx.eval_shape(lambda: self.make(jax.random.key(0))))

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by name."""
        return named_shapes(self.split()[1])

    @classmethod
    def of(cls, widths: Iterable[int], arrays: Mapping[str, Any]) -> "Shape":
        """From the parameters of `jaxcold.models.layers.named_arrays`."""
        distilled = "student/second/kernel" in arrays
        teacher = "teacher/" if distilled else ""
        hidden, out = arrays[f"{teacher}final/kernel"].shape
        layers = 2 if f"{teacher}fusion/second/kernel" in arrays else 1
        student = arrays["student/second/kernel"].shape if distilled else None
        return cls(tuple(widths), hidden, out, layers, student)


def student_graph(shape: Shape) -> nnx.GraphDef:
    """The graph of the student alone, of an encoder that has one."""

    def make() -> Student:
        encoder = shape.make(jax.random.key(0))
        assert isinstance(encoder, DistilledEncoder)
        return encoder.student

    return nnx.split(nnx.eval_shape(make))[0]


class Encoder(NamedTuple):
    """A trained encoder: an item's embedding follows from this and its content alone."""

    graphdef: nnx.GraphDef
    params: nnx.State
    first: tuple[Affine, ...]  # the first layers, with a catalogue's statistics folded in


def encoder_arrays(encoder: Encoder) -> dict[str, np.ndarray]:
    """All numbers of an encoder, by name."""
    arrays = named_arrays(encoder.params)
    for m, layer in enumerate(encoder.first):
        arrays |= {f"first/{m}/kernel": layer.kernel, f"first/{m}/bias": layer.bias}
    return {name: np.asarray(array) for name, array in arrays.items()}


def encoder_from_arrays(arrays: Mapping[str, np.ndarray]) -> Encoder:
    """The encoder of `encoder_arrays`; other names are left alone.

    Raises:
        KeyError: for a name that is absent.
        ValueError: for shapes that do not belong together.
    """
    count = sum(name.startswith("first/") for name in arrays) // 2
    first = tuple(
        Affine(*(jnp.asarray(arrays[f"first/{m}/{part}"]) for part in ("kernel", "bias")))
        for m in range(count)
    )
    graphdef, abstract = Shape.of((layer.kernel.shape[0] for layer in first), arrays).split()
    return Encoder(graphdef, fill_state(abstract, arrays), first)


@functools.partial(jax.jit, static_argnums=0)
def _fold(
    graphdef: nnx.GraphDef, params: nnx.State, moments: tuple[Moments, ...]
) -> tuple[Affine, ...]:
    return nnx.merge(graphdef, params).fold(moments)


@functools.partial(jax.jit, static_argnums=0)
def _embed_block(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    first: tuple[Affine, ...],
    features: tuple[Array, ...],
    present: tuple[Array, ...],
) -> Array:
    return nnx.merge(graphdef, params)(features, first, present)


def joined(params: Mapping[str, nnx.State]) -> nnx.State:
    """The parameters of an encoder from a model's groups: "main", or "teacher" and "student"."""
    return params["main"] if "main" in params else nnx.State(dict(params))


def trained(params: nnx.State, moments: tuple[Moments, ...]) -> Encoder:
    """The encoder of trained parameters.

    Args:
        params: of a `ContentEncoder` or a `DistilledEncoder`.
        moments: of the catalogue whose statistics normalise the first layers.
    """
    graphdef, _ = Shape.of((m.mean.shape[0] for m in moments), named_arrays(params)).split()
    return Encoder(graphdef, params, _fold(graphdef, params, moments))


def encode(
    encoder: Encoder,
    tables: Sequence[np.ndarray],
    present: Sequence[np.ndarray],
    *,
    together: bool = False,
) -> np.ndarray:
    """Embeds items in blocks of one compiled shape: the same bits alone or in any company.

    Args:
        encoder: trained.
        tables: M arrays [n, D_m] of raw features of any float type, possibly memory-mapped.
        present: M arrays bool[n]; where False the item lacks the mode.
        together: of several hosts, all of which call this, each embeds a shard of the items.

    Returns:
        f32[n, out] unit rows.

    Raises:
        DataError: if the file of a mapped table has gone.
    """
    count = len(tables[0])
    first, end = parallel.host_shard(count, BLOCK) if together else (0, count)

    def block(start: int) -> np.ndarray:
        ids = np.arange(start, start + BLOCK)
        ids[ids >= end] = -1
        rows = tuple(
            vectors.take_unit_rows(table, p, ids) for table, p in zip(tables, present, strict=True)
        )
        masks = tuple((ids >= 0) & np.asarray(p)[ids] for p in present)
        return np.asarray(_embed_block(*encoder, rows, masks))[: end - start]

    # A host without items makes a block too, so that all hosts' rows have one width.
    starts = range(first, max(end, first + 1), BLOCK)
    own = np.concatenate([block(start) for start in starts])
    return np.concatenate(parallel.all_gather_hosts(own)) if together else own
