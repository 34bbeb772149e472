"""Catalogue-sized loss against the dense one: time and peak memory, measured in one run.

    python -m experiments.bench.linear_entmax [--rows 4096 --items 131072 --dim 128]

Each variant runs in a process of its own, so that its peak resident memory is its own. Columns:
seconds (median) of the loss and of loss and gradient; what the process's peak grew by while they
ran (MB; with gradients, without arguments and compiler); the compiler's temporary MB.
The dense loss is timed before and after the blocked one, since a shared machine drifts.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys


def measure(variant: str, alpha: float, spread: float, rows: int, items: int, dim: int) -> dict:
    """Runs one variant in this process; unit-norm rows give logits spread * cosine."""
    import jax
    import jax.numpy as jnp

    from experiments.bench.timing import median_times
    from jaxcold.sparse import fenchel_young_loss
    from jaxcold.sparse.linear import linear_entmax_loss

    keys = jax.random.split(jax.random.key(0), 3)
    h, W = (jax.random.normal(k, (n, dim)) for k, n in zip(keys, (rows, items), strict=False))
    h = spread * h / jnp.linalg.norm(h, axis=1, keepdims=True)
    W = W / jnp.linalg.norm(W, axis=1, keepdims=True)
    targets = jax.random.randint(keys[2], (rows,), 0, items)

    def loss(h: jax.Array, W: jax.Array) -> jax.Array:
        if variant == "dense":
            return fenchel_young_loss(h @ W.T, targets, alpha).mean()
        return linear_entmax_loss(h, W, targets, alpha, method=variant).mean()

    out: dict = {}
    for name, function in (("loss", loss), ("gradient", jax.value_and_grad(loss, (0, 1)))):
        compiled = jax.jit(function).lower(h, W).compile()
        jax.block_until_ready((h, W, targets))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out[name] = median_times({name: functools.partial(compiled, h, W)}, 3)[name]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        out[name + " peak MB"] = grown / 1024
        analysis = compiled.memory_analysis()
        out[name + " temp MB"] = analysis.temp_size_in_bytes / 1e6 if analysis else float("nan")
    out["value"] = float(loss(h, W))
    return out


def main() -> None:
    """Prints one line per variant and the ratios of the blocked loss to the dense one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--items", type=int, default=131072)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--alpha", type=float, action="append", help="default 1, 1.5 and 2")
    parser.add_argument(
        "--spread", type=float, default=20.0, help="logits are spread * cosine; 0.01: full support"
    )
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    alphas = args.alpha or [1.0, 1.5, 2.0]
    sizes = (args.rows, args.items, args.dim)
    if args.variant:
        print(json.dumps(measure(args.variant, alphas[0], args.spread, *sizes)))
        return
    for alpha in alphas:
        results = []
        for variant in ("dense", "xla", "dense"):
            flags = {"variant": variant, "alpha": alpha, "spread": args.spread}
            flags |= dict(zip(("rows", "items", "dim"), sizes, strict=True))
            command = [sys.executable, "-m", __spec__.name]
            command += [f"--{name}={value}" for name, value in flags.items()]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            shown = " | ".join(f"{k} {v:.4g}" for k, v in results[-1].items())
            print(f"alpha {alpha} {variant:5} | {shown}", flush=True)
        before, blocked, after = results
        for name in ("loss", "gradient"):
            dense = min(before[name], after[name])
            peak = min(before[name + " peak MB"], after[name + " peak MB"])
            print(
                f"alpha {alpha} {name}: blocked / dense time {blocked[name] / dense:.2f}, "
                f"peak memory {blocked[name + ' peak MB'] / max(peak, 1e-9):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
