"""Checkpoints of a training run: each whole or absent, written while training goes on."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxcold.train.step import TrainState
from jaxcold.types import DataError


class Checkpoints:
    """The checkpoints of one training run in one folder, the newest of them kept.

    A checkpoint is a `TrainState` and a note that JSON can hold. Order and keys of a run follow
    from (seed, epoch) and the step's number, so nothing else is needed to go on to the same bits.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 1):
        self._folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep)
        )

    def save(self, state: TrainState, note: dict[str, Any]) -> None:
        """Copies the state and writes it in the background, under a temporary name first."""
        # A copy: the next step gives the state's buffers away.
        host = jax.tree.map(np.array, state)
        self._manager.save(
            int(host.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host), note=ocp.args.JsonSave(note)
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state and its note; None where there is none.

        Args:
            like: a state of the same shapes.

        Raises:
            DataError: if it cannot be read, or is the state of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        wanted = jax.tree.map(np.asarray, like)
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(wanted), note=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises what its storage raises: of any type
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{self._folder / str(step)}: the checkpoint cannot be read ({reason:.200}); "
                f"delete {self._folder} to start this seed again"
            ) from None
        return jax.tree.map(jnp.array, found["state"]), found["note"]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background work."""
        self._manager.close()
