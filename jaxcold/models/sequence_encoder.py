"""The network of SASRec: from the items of a history to the vector that scores the next one.

Token i of a history is ``sqrt(d) E[item_i] + P[i]``; transformer blocks attend to earlier tokens.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences.batches import Tokens
from jaxcold.models.attention import INIT, Block, GatedBlock, split_key
from jaxcold.models.layers import Compute, ModuleList, dropout, fill_state, named_arrays
from jaxcold.types import Csr

ItemTable = Literal["random", "content", "frozen", "delta"]
Layers = Literal["sasrec", "ligr"]
LAYERS: Mapping[str, Any] = {"sasrec": Block, "ligr": GatedBlock}


class SASRec(nnx.Module):
    """Positions, blocks, and what is trainable in the item table."""

    def __init__(
        self,
        items: int,
        dim: int,
        max_length: int,
        *,
        item_table: ItemTable,
        blocks: int,
        heads: int,
        dropout: float,
        rngs: nnx.Rngs,
        rows: int | None = None,
        compute: Compute = "float32",
        layers: Layers = "sasrec",
    ):
        # Row 0 is no item: zeros, as are the rows beyond the items.
        start = INIT * jax.random.normal(rngs.params(), (items + 1, dim)).at[0].set(0)
        padding = (rows or items + 1) - (items + 1)
        start = jnp.pad(start, ((0, padding), (0, 0))) if padding else start
        # A trainable table from content starts there as soon as the content is known.
        self.items = nnx.Param(start) if item_table in ("random", "content") else None
        self.delta = nnx.Param(start) if item_table == "delta" else None
        self.position = nnx.Param(INIT * jax.random.normal(rngs.params(), (max_length, dim)))
        self.blocks = ModuleList(
            [LAYERS[layers](dim, heads, dropout, rngs=rngs, compute=compute) for _ in range(blocks)]
        )
        self.norm = nnx.LayerNorm(dim, epsilon=1e-8, use_fast_variance=False, rngs=rngs)
        self.dropout = dropout

    def table(self, content: Array | None) -> Array:
        """f[items + 1, d]: a row for no item, then all warm items.

        Args:
            content: of the same shape, its row 0 zero; None where the table needs none.
        """
        if self.items is not None:
            return self.items[...]
        assert content is not None
        return content if self.delta is None else content + self.delta[...]

    def __call__(
        self, table: Array, tokens: Tokens, key: Array | None = None, additive: bool = False
    ) -> Array:
        """Hidden states, [T, d].

        Args:
            table: [items + 1, d]; row 0 for no item.
            tokens: of the batch.
            key: of dropout; without one nothing is dropped.
            additive: tokens without an item are seen, with a logit lower by one.
        """
        return self.hidden(table[tokens.item], tokens, key, additive)

    def hidden(
        self, rows: Array, tokens: Tokens, key: Array | None = None, additive: bool = False
    ) -> Array:
        """As a call, with the tokens' rows of the table, [T, d]."""
        keys = split_key(key, len(self.blocks) + 1)
        x = math.sqrt(rows.shape[1]) * rows + self.position[...][tokens.position]
        x = dropout(x, self.dropout, keys[0])
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, tokens, key, additive)
        return self.norm(x)


def encode_histories(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    item_vectors: np.ndarray,
    histories: Csr,
    *,
    longest: int | None = None,
    together: bool = False,
    reference_batch: int | None = None,
) -> np.ndarray:
    """f32[m, d] hidden states after the last item of each history; zero for an empty one.

    A state depends on its own history alone.

    Args:
        graphdef: of a `SASRec`.
        params: of it; the item table is not read.
        item_vectors: f32[I, d]; with `reference_batch` one row more, that of padding.
        histories: m rows of at most `max_length` items.
        longest: history that the shapes of programs must suit; None: the longest here.
        together: of several hosts, all of which call this, each encodes some blocks.
        reference_batch: as in the published code: so many rows at a time, padded on the left to the
            longest of them, where padding is visible.
    """
    dim = item_vectors.shape[1]
    padding = np.zeros((1, dim), np.float32) if reference_batch is None else item_vectors[-1:]
    user = np.zeros((histories.rows, dim), np.float32)
    done = [np.zeros(0, np.int64)]
    blocks = packing.encoding_blocks(histories, batch=reference_batch, longest=longest)
    for number, (members, tokens, last) in enumerate(blocks):
        if together and not parallel.is_owner(number):
            continue
        # Rows are taken on the host: the program does not depend on the size of the catalogue.
        rows = np.where((tokens.item > 0)[:, None], item_vectors[tokens.item - 1], padding)
        states = _encode(graphdef, params, rows, tokens, last, reference_batch is not None)
        user[members] = np.asarray(states)[: len(members)]
        done.append(members)
    if together:
        own = np.concatenate(done)
        states_of_hosts = parallel.all_gather_hosts(user[own])
        for members, states in zip(parallel.all_gather_hosts(own), states_of_hosts, strict=True):
            user[members] = states
    return user


@functools.partial(jax.jit, static_argnums=(0, 5))
def _encode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    rows: Array,
    tokens: Tokens,
    last: Array,
    additive: bool,
) -> Array:
    """Hidden states [n, d] of the tokens numbered `last` [n]; see `SASRec.hidden`."""
    return nnx.merge(graphdef, params).hidden(rows, tokens, additive=additive)[last]


def encoder_arrays(params: nnx.State) -> dict[str, np.ndarray]:
    """Parameters by path, such as "blocks/0/query/kernel", "items" and "delta"."""
    return {name: np.asarray(array) for name, array in named_arrays(params).items()}


def encoder_from_arrays(
    options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[nnx.GraphDef, nnx.State]:
    """The module without an item table of its own, and its parameters.

    Args:
        options: of `build`.
        arrays: of `encoder_arrays`; those of the item table are ignored.

    Raises:
        KeyError, TypeError, ValueError: for options or arrays of another model.
    """

    graphdef, abstract = served_shapes(options)
    return graphdef, fill_state(abstract, arrays)


def served_shapes(options: Mapping[str, Any]) -> tuple[nnx.GraphDef, nnx.State]:
    """The module without an item table, of the `options` of `build`, and its shapes."""

    def make() -> SASRec:
        return SASRec(
            0,
            options["dim"],
            options["max_length"],
            item_table="frozen",
            blocks=options["blocks"],
            heads=options["heads"],
            dropout=0.0,
            rngs=nnx.Rngs(params=0),
            layers=options.get("layers", "sasrec"),  # models saved before there was a choice
        )

    return nnx.split(nnx.eval_shape(make))
