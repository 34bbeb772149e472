"""Layers shared by the models: unit rows, batch norm over a catalogue, attention over modes."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold.data import content as vectors

Compute = Literal["float32", "bfloat16"]

# A list of submodules: Flax 0.12 asks for `nnx.List`, Flax 0.11 has plain lists.
ModuleList: Any = getattr(nnx, "List", list)


def rounded(x: Array, compute: Compute) -> Array:
    """What a matrix product multiplies: x itself, or in 8 bits of mantissa."""
    return x if compute == "float32" else x.astype(jnp.bfloat16)


def product(x: Array, y: Array, compute: Compute) -> Array:
    """``x @ y``, and the products of its gradient, with operands in `compute`; the sums in float32.

    Args:
        x: [n, k].
        y: [k, m].
        compute: "float32", operands as they are; "bfloat16", rounded, as are the cotangents.
    """
    return x @ y if compute == "float32" else _half_product(x, y)


def sums(x: Array, y: Array) -> Array:
    """``x @ y`` of arrays of any width, summed in float32 at least."""
    dtype = x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return jnp.matmul(x, y, preferred_element_type=dtype)


@jax.custom_vjp
def _half_product(x: Array, y: Array) -> Array:
    return sums(rounded(x, "bfloat16"), rounded(y, "bfloat16"))


def _half_forward(x: Array, y: Array) -> tuple[Array, Any]:
    x16, y16 = rounded(x, "bfloat16"), rounded(y, "bfloat16")
    return sums(x16, y16), (x16, y16, jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))


def _half_backward(residuals: Any, g: Array) -> tuple[Array, Array]:
    x, y, like_x, like_y = residuals
    g = rounded(g, "bfloat16")
    return sums(g, y.T).astype(like_x.dtype), sums(x.T, g).astype(like_y.dtype)


_half_product.defvjp(_half_forward, _half_backward)


def unit_rows(x: Array, eps: float = 1e-12) -> Array:
    """Divides each row by its L2 norm; a zero row stays zero and gets a zero gradient.

    Args:
        x: [..., D] rows.
        eps: smallest norm divided by.

    Returns:
        [..., D] rows of norm 1 or 0.
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    zero = square == 0
    # sqrt has an infinite slope at 0: give it 1 there, so that no inf * 0 enters the gradient.
    norm = jnp.sqrt(jnp.where(zero, 1.0, square))
    return jnp.where(zero, 0.0, x / jnp.maximum(norm, eps))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Dropout; without a key nothing is dropped."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def named_arrays(state: nnx.State) -> dict[str, Any]:
    """The arrays of a state by path, such as "blocks/0/query/kernel"."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def named_shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of `named_arrays`, of a state with or without values."""
    return {
        "/".join(map(str, path)): jax.tree.leaves(leaf)[0].shape
        for path, leaf in nnx.to_flat_state(state)
    }


def fill_state(abstract: nnx.State, arrays: Mapping[str, Any]) -> nnx.State:
    """A state of these shapes with the arrays of those names; other names are ignored.

    Raises:
        KeyError: for a name that is absent.
        ValueError: for an array of another shape.
    """
    leaves = []
    for path, leaf in nnx.to_flat_state(abstract):
        name = "/".join(map(str, path))
        wanted = jax.tree.leaves(leaf)[0].shape
        if arrays[name].shape != wanted:
            raise ValueError(f"{name} has shape {list(arrays[name].shape)}, not {list(wanted)}")
        leaves.append((path, leaf.replace(jnp.asarray(arrays[name]))))
    return nnx.from_flat_state(leaves)


class Moments(NamedTuple):
    """First and second moments of one mode's feature rows over a catalogue."""

    mean: Array  # f32[D]
    cov: Array  # f32[D, D], biased (divided by the number of rows)


def catalogue_moments(table: np.ndarray, rows: np.ndarray, *, chunk: int = 16384) -> Moments:
    """Mean and covariance of unit-normalised feature rows, in float64, a chunk at a time.

    Args:
        table: [I, D] features of any float type, possibly memory-mapped.
        rows: i32[n] the rows that form the catalogue.
        chunk: rows in memory at once.
    """
    width = table.shape[1]
    total = np.zeros(width)
    for at in range(0, len(rows), chunk):
        block = vectors.unit_rows(vectors.take(table, rows[at : at + chunk]))
        total += block.sum(0, dtype=np.float64)
    mean = total / max(len(rows), 1)
    cov = np.zeros((width, width))
    for at in range(0, len(rows), chunk):
        # Centred before the product: no cancellation, so float32 is enough inside a chunk.
        block = vectors.unit_rows(vectors.take(table, rows[at : at + chunk]))
        block -= mean.astype(np.float32)
        cov += block.T @ block
    cov /= max(len(rows), 1)
    return Moments(jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))


def _uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Dense(nnx.Module):
    """Linear layer; weights and bias start uniform in +-1/sqrt(fan_in), as in the papers' code."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, compute: Compute = "float32"):
        self.kernel = nnx.Param(_uniform(rngs.params(), (inputs, outputs), inputs))
        self.bias = nnx.Param(_uniform(rngs.params(), (outputs,), inputs))
        self.compute = compute

    def __call__(self, x: Array) -> Array:
        """[n, inputs] -> [n, outputs]."""
        return product(x, self.kernel[...], self.compute) + self.bias[...][None, :]


class Affine(NamedTuple):
    """A Dense layer with its batch norm folded in: ``x @ kernel + bias``."""

    kernel: Array  # f32[D, h]
    bias: Array  # f32[h]


class NormedDense(nnx.Module):
    """Dense followed by batch norm over a whole catalogue, without encoding the catalogue.

    Batch norm of a linear map needs only the moments of its input: the pre-activations
    ``x @ W`` have mean ``m W`` and variance ``diag(W^T C W)``. With m and C computed once from the
    features, the exact statistics of the whole catalogue cost D * D * h operations a step, are
    differentiated like any other expression, do not depend on which items are in the batch, and
    fold into the weights. The Dense bias of the paper cancels in the normalisation and is left out.
    """

    EPS = 1e-5

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_uniform(rngs.params(), (inputs, outputs), inputs))
        self.scale = nnx.Param(jnp.ones(outputs))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def fold(self, moments: Moments) -> Affine:
        """The layer as one affine map, its statistics those of the catalogue of `moments`."""
        kernel = self.kernel[...]
        # Statistics decide every item's embedding: keep them in full precision on TPU and GPU too.
        with jax.default_matmul_precision("highest"):
            mean = moments.mean @ kernel
            variance = jnp.sum(kernel * (moments.cov @ kernel), axis=0)
        scale = self.scale[...] * jax.lax.rsqrt(variance + self.EPS)
        return Affine(kernel * scale[None, :], self.bias[...] - mean * scale)


class ModalityFusion(nnx.Module):
    """Attention over modes: weights a = softmax(MLP(concat(h_1..h_M))), output sum_m a_m h_m.

    One layer is what the SEMCo authors' code has, two layers (hidden ReLU of the width of one mode)
    what the paper describes (section 3.2.2).
    """

    def __init__(
        self,
        modes: int,
        hidden: int,
        layers: int,
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        if layers not in (1, 2):
            raise ValueError(f"attention_layers is 1 (the code) or 2 (the paper), not {layers}")
        first = modes if layers == 1 else hidden
        self.first = Dense(modes * hidden, first, rngs=rngs, compute=compute)
        self.second = Dense(hidden, modes, rngs=rngs, compute=compute) if layers == 2 else None

    def __call__(self, hidden: Sequence[Array], present: Sequence[Array] | None) -> Array:
        """Fuses M arrays [n, h] into one; `present` (M arrays bool[n]) masks missing modes."""
        # One product per mode instead of concatenating: the [n, M h] copy need not exist.
        kernels = jnp.split(self.first.kernel[...], len(hidden))
        logits = self.first.bias[...][None, :] + sum(
            product(h, k, self.first.compute) for h, k in zip(hidden, kernels, strict=True)
        )
        if self.second is not None:
            logits = self.second(jax.nn.relu(logits))
        # The softmax over modes by columns: a reduction over an axis of length M would not fuse
        # with the products around it.
        columns = jnp.split(logits, len(hidden), axis=-1)
        if present is not None:
            # Items without any mode keep finite weights; their rows are zeroed by the encoder.
            is_empty = ~functools.reduce(jnp.logical_or, present)
            columns = [
                jnp.where((p | is_empty)[:, None], column, -jnp.inf)
                for column, p in zip(columns, present, strict=True)
            ]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, columns))
        weights = [jnp.exp(column - top) for column in columns]
        total = functools.reduce(jnp.add, weights)
        return functools.reduce(
            jnp.add, [w / total * h for w, h in zip(weights, hidden, strict=True)]
        )
