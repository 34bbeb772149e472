"""The gated layers of LiGR in SASRec: against NumPy, in training, and saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

import jaxcold
from jaxcold.data.sequences import batches as packing
from jaxcold.models.layers import named_arrays
from jaxcold.models.sequence_encoder import SASRec
from jaxcold.types import Csr

# Float64 references: Flax raises widths of its own.
pytestmark = pytest.mark.usefixtures("standard_promotion")

DIM, HEADS = 8, 2


def network(blocks=2, heads=HEADS, dropout=0.0):
    return SASRec(
        30,
        DIM,
        9,
        item_table="random",
        blocks=blocks,
        heads=heads,
        dropout=dropout,
        rngs=nnx.Rngs(params=0),
        layers="ligr",
    )


def with_noise(model, seed=0):
    """The module with float64 parameters away from their start, and these by name."""
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: jnp.asarray(x + rng.normal(size=x.shape) / 3), state)
    return nnx.merge(graphdef, state), {k: np.asarray(v) for k, v in named_arrays(state).items()}


def tokens_of(rows):
    """Sequences as tokens, without targets."""
    lengths = np.array([len(row) for row in rows])
    inputs = Csr(np.cumsum([0, *lengths]), np.concatenate(rows).astype(np.int32))
    none = np.full(len(inputs.indices), -1)
    packed = packing.pack(inputs, none, packing.capacity_for(lengths, len(rows)))
    return jax.tree.map(jnp.asarray, packed)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(arrays, items, blocks, heads):
    """Hidden states of one sequence, [n, d], with loops over heads and positions."""

    def linear(name, x):
        return x @ arrays[f"{name}/kernel"] + arrays.get(f"{name}/bias", 0.0)

    def norm(name, x):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-8)
        return scaled * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    n, size = len(items), DIM // heads
    x = np.sqrt(DIM) * arrays["items"][items] + arrays["position"][:n]
    for block in range(blocks):
        at = f"blocks/{block}"
        z = norm(f"{at}/norm1", x)
        q, k, v = (linear(f"{at}/{part}", z) for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for i in range(n):
                logits = k[: i + 1, own] @ q[i, own] / np.sqrt(size)
                weights = np.exp(logits - logits.max())
                mixed[i, own] = weights / weights.sum() @ v[: i + 1, own]
        x = x + sigmoid(linear(f"{at}/gate1", x)) * linear(f"{at}/out", mixed)
        z = norm(f"{at}/norm2", x)
        switch = linear(f"{at}/switch", z)
        inner = switch * sigmoid(switch) * linear(f"{at}/up", z)
        x = x + sigmoid(linear(f"{at}/gate2", x)) * linear(f"{at}/down", inner)
    return norm("norm", x)


@pytest.mark.parametrize("heads", [1, HEADS])
def test_hidden_states_are_those_by_hand(heads, x64):
    model, arrays = with_noise(network(heads=heads))
    rows = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [3, 2]]
    hidden = np.asarray(model(model.table(None), tokens_of(rows)))
    starts = np.cumsum([0, *map(len, rows[:-1])])
    for row, start in zip(rows, starts, strict=True):
        expected = by_hand(arrays, np.array(row) + 1, 2, heads)
        np.testing.assert_allclose(hidden[start : start + len(row)], expected, atol=1e-10)


def test_dropout_acts_with_a_key_only():
    model, _ = with_noise(network(dropout=0.5))
    tokens = tokens_of([[1, 2, 3, 4]])
    one, two = (model(model.table(None), tokens) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    dropped = [model(model.table(None), tokens, jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], dropped[2])
    assert not np.allclose(dropped[0], one)


@pytest.fixture(scope="module")
def log():
    """Walks around a circle of 12 items: what comes next is certain."""
    rows = [(u, (u + i) % 12, i) for u in range(60) for i in range(6)]
    return pd.DataFrame(rows, columns=["user", "item", "time"])


def test_it_learns_and_is_saved(log, tmp_path):
    fitted = jaxcold.SASRec.fit(
        log,
        None,
        layers="ligr",
        dim=16,
        blocks=1,
        dropout=0.0,
        epochs=30,
        batch_size=16,
        learning_rate=1e-2,
        val_fraction=0,
        progress=False,
    )
    asked = [[(i + k) % 12 for k in range(3)] for i in range(12)]
    lists = fitted.recommend(histories=asked, k=1, exclude_seen=False)["item"].tolist()
    assert lists == [(i + 3) % 12 for i in range(12)]
    fitted.save(tmp_path / "model")
    again = jaxcold.load(tmp_path / "model")
    np.testing.assert_array_equal(
        again._encode_users(fitted.histories, None), fitted._encode_users(fitted.histories, None)
    )


def test_an_average_is_served_and_training_goes_on_from_it(log):
    options = {"dim": 8, "blocks": 1, "epochs": 4, "val_fraction": 0, "progress": False}
    last, mean = (
        jaxcold.SASRec.fit(log, None, average=average, **options) for average in (0.0, 0.95)
    )
    # An average is behind: its rows have moved less from their start near 0.
    assert np.linalg.norm(mean.item) < np.linalg.norm(last.item)
    news = pd.DataFrame({"user": [100] * 3, "item": [1, 2, 3], "time": [1, 2, 3]})
    more = mean.partial_fit(news, None, learning_rate=1e-12, progress=False)
    np.testing.assert_allclose(more.item, mean.item, atol=1e-6)
    assert more.options["average"] == 0.95


def test_other_layers_are_named(log):
    with pytest.raises(ValueError, match="layers is 'sasrec' or 'ligr', not 'gpt'"):
        jaxcold.SASRec.fit(log, None, layers="gpt", epochs=1, progress=False)
