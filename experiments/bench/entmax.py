"""Speed of the sparse mappings and losses against softmax, and against PyTorch's entmax package.

``python -m experiments.bench.entmax`` takes about a minute and prints one Markdown table:
milliseconds of a call (median) and their ratio to softmax, on [2048, 2048] float32 logits at the
scale at which SEMCo trains and at scale 1. The rows of PyTorch appear where torch and entmax can
be imported (``pip install torch entmax``); they use as many threads as there are cores.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.bench.timing import median_times
from jaxcold import sparse

ROWS = 2048
SCALES = {"SEMCo, 0.15 / 144": 0.15 / 144, "1": 1.0}

_REPEATS = flags.DEFINE_integer("repeats", 30, "rounds of the measurement", lower_bound=1)


def _cross_entropy(z: jax.Array, labels: jax.Array) -> jax.Array:
    at_label = jnp.take_along_axis(z, labels[:, None], -1)[:, 0]
    return (jax.nn.logsumexp(z, -1) - at_label).mean()


def _entmax_loss(z: jax.Array, labels: jax.Array, alpha: float, **options: Any) -> jax.Array:
    return sparse.fenchel_young_loss(z, labels, alpha, **options).mean()


def jax_functions(z: jax.Array, labels: jax.Array) -> dict[str, Callable[[], Any]]:
    """Name -> compiled call; mappings first, then losses with their gradients."""
    mappings: dict[str, Callable[..., Any]] = {
        "softmax": jax.nn.softmax,
        "entmax15": sparse.entmax15,
        "sparsemax": sparse.sparsemax,
    }
    losses: dict[str, Callable[..., Any]] = {"cross-entropy, value and gradient": _cross_entropy}
    for name, alpha in {"entmax15": 1.5, "sparsemax": 2.0}.items():
        losses[f"{name} loss, value and gradient"] = functools.partial(_entmax_loss, alpha=alpha)
        losses[f"{name} loss, authors' form, tau 2"] = functools.partial(
            _entmax_loss, alpha=alpha, tau=2.0, gradient="autodiff"
        )
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(jax.jit(function), z) for name, function in mappings.items()
    }
    for name, loss in losses.items():
        calls[name] = functools.partial(jax.jit(jax.value_and_grad(loss)), z, labels)
    return calls


def torch_functions(z: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same of PyTorch's entmax package; empty where it is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "entmax")):
        return {}
    import entmax
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    plain = torch.from_numpy(np.array(z))
    logits = plain.clone().requires_grad_()
    target = torch.from_numpy(np.array(labels)).long()

    def value_and_gradient(loss: Callable[..., Any]) -> Any:
        return torch.autograd.grad(loss(logits, target).mean(), logits)

    calls: dict[str, Callable[[], Any]] = {}
    for name in ("entmax15", "sparsemax"):
        calls[f"{name}, PyTorch"] = functools.partial(getattr(entmax, name), plain)
        loss = getattr(entmax, f"{name}_loss")
        calls[f"{name} loss, PyTorch"] = functools.partial(value_and_gradient, loss)
    return calls


def table(repeats: int) -> str:
    """Measures everything and returns the table."""
    labels = np.arange(ROWS, dtype=np.int32)
    lines = ["| scale | call | ms | x softmax |", "|---|---|--:|--:|"]
    for scale_name, scale in SCALES.items():
        z = (np.random.default_rng(0).normal(size=(ROWS, ROWS)) * scale).astype(np.float32)
        times = median_times(jax_functions(jnp.asarray(z), jnp.asarray(labels)), repeats)
        # Afterwards, not in between: the two libraries' idle threads would slow each other.
        times |= median_times(torch_functions(z, labels), max(1, repeats // 6))
        for name, seconds in times.items():
            is_loss = "loss" in name or "entropy" in name
            unit = times["cross-entropy, value and gradient" if is_loss else "softmax"]
            lines.append(f"| {scale_name} | {name} | {seconds * 1e3:.2f} | {seconds / unit:.2f} |")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Prints the table."""
    print(f"{os.cpu_count()} CPU cores, JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    print("Losses are compared with the softmax cross-entropy, mappings with softmax.\n")
    print(table(_REPEATS.value))


if __name__ == "__main__":
    app.run(main)
