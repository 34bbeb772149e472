"""Which devices a run uses, and which of its arrays are sharded."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jaxcold import parallel


def test_devices_are_chosen_by_the_name_of_the_parallelism():
    assert parallel.choose() == parallel.ONE  # a CPU's simulated devices do not count
    assert parallel.choose("pmap").n == 8
    with pytest.raises(ValueError, match="parallel is one of auto, jit, pmap, shard_map"):
        parallel.choose("pjit")
    with pytest.raises(ValueError, match="9 devices asked for; there are 8"):
        parallel.choose("pmap", count=9)
    with pytest.raises(ValueError, match="up to 8 devices, not over 3"):
        parallel.choose("pmap", count=3, shard_items=True).rows(30)


class Batch(NamedTuple):
    item: Any
    features: Any = ()
    value: Any = None


class Tables(nnx.Module):
    """A table called "delta", and a layer of the same name somewhere below."""

    def __init__(self):
        self.delta = nnx.Param(jnp.zeros((8, 2)))
        self.inner = nnx.Dict(delta=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def sharded(tree, names):
    """Paths of the sharded arrays."""
    marked = parallel.sharding_tree(tree, names)
    assert jax.tree.structure(marked) == jax.tree.structure(tree)
    flat, _ = jax.tree_util.tree_flatten_with_path(marked)
    return [jax.tree_util.keystr(path) for path, is_sharded in flat if is_sharded]


def test_an_array_is_sharded_by_the_last_name_on_its_path():
    tree = {"delta": 1, "norm": {"delta": 2, "scale": 3}, "items": {"delta": {"scale": 4}}}
    assert sharded(tree, ("delta",)) == ["['delta']", "['norm']['delta']"]
    assert sharded(tree, ("norm.delta",)) == ["['norm']['delta']"]
    assert sharded(tree, ("scale",)) == ["['items']['delta']['scale']", "['norm']['scale']"]
    assert sharded(Batch(1, (2, 3)), ("features",)) == [".features[0]", ".features[1]"]
    assert sharded(tree, ()) == []
    assert len(sharded(tree, True)) == 4
    assert sharded(tree, False) == []


def test_moments_of_a_sharded_table_are_sharded():
    params = nnx.split(Tables())[1]
    assert len(sharded(params, ("delta",))) == 1
    state = {"params": params, "opt_state": optax.adam(1e-3).init(params)}
    paths = sharded(state, ("delta",))
    assert len(paths) == 3
    assert [name for path in paths for name in ("mu", "nu") if f".{name}" in path] == ["mu", "nu"]


def test_an_absent_array_may_be_named():
    assert sharded(Batch(1), ("features", "value")) == []
    assert sharded(Batch(1, (), 2), ("features", "value")) == [".value"]
    masked = optax.masked(optax.adam(1e-3), {"delta": False, "items": True})
    state = masked.init({"delta": jnp.zeros(2), "items": jnp.zeros(2)})
    assert len(sharded(state, ("delta", "items"))) == 2


def test_a_name_that_matches_nothing_is_refused():
    tree = {"delta": {"scale": 1}}
    with pytest.raises(ValueError, match="no array is called delta, itmes"):
        parallel.sharding_tree(tree, ("itmes", "scale", "delta"))
    devices = parallel.choose("shard_map", count=2)
    with pytest.raises(ValueError, match="no array is called itmes"):
        devices.put({"items": jnp.zeros(2)}, ("itmes",))
