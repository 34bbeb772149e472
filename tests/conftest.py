"""Strict defaults for every test: eight simulated devices, ranks and types are not promoted."""

import os
import pathlib

# Before the first import of jax, which reads it once.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import hypothesis
import jax
import numpy as np
import pytest

# In CI the same examples every time; elsewhere fresh ones, and a failure that can be repeated.
hypothesis.settings.register_profile("ci", max_examples=20, derandomize=True, deadline=None)
hypothesis.settings.register_profile("here", max_examples=20, print_blob=True, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
if not hasattr(jax, "enable_x64"):  # JAX 0.7, where it has another address
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """For tests that take Optax's steps by hand: it raises floats to its int32 count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def golden():
    """Loads a numeric fixture by name, such as "semco/encoder", as a dict of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return load


@pytest.fixture
def data_root():
    """Folder of the real data sets, or a skip with the reason."""
    root = os.environ.get("JAXCOLD_DATA")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("JAXCOLD_DATA does not name a folder with the real data sets")
    return pathlib.Path(root)
