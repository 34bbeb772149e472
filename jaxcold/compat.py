"""What the oldest supported releases lack; each goes when its floor in pyproject.toml rises."""

from typing import Any

from flax import nnx

# A list of submodules. Flax 0.11 takes plain lists, and has no `nnx.List`, which 0.12 asks for.
List: Any = getattr(nnx, "List", list)
