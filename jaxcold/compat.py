"""What the oldest supported releases lack; each goes when its floor in pyproject.toml rises."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# A list of submodules. Flax 0.11 takes plain lists, and has no `nnx.List`, which 0.12 asks for.
List: Any = getattr(nnx, "List", list)


def pmap(body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.pmap`, made of shard_map. JAX 0.7 does that only if asked, and for a whole process."""
    if jax.__version_info__ < (0, 8):
        jax.config.update("jax_pmap_shmap_merge", True)
    return jax.pmap(body, **options)
