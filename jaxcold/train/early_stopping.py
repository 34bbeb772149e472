"""Which epoch is the best one on validation, and when training has gone on long enough."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The best evaluation so far; immutable, and JSON can hold it (`to_json`)."""

    patience: int | None = None  # evaluations without a gain after which training ends; None: never
    pretraining_epochs: int = 0  # the first epochs, of which none can be the best
    best_score: float | None = None  # higher is better
    best_epoch: int = 0  # from 1; 0 while there is none
    misses: int = 0  # evaluations since the best one

    def update(self, epoch: int, score: float) -> "EarlyStopping":
        """After an evaluation; a score that is NaN is never the best.

        Args:
            epoch: number of the finished epoch, from 1.
            score: on validation.
        """
        if epoch <= self.pretraining_epochs:
            return self
        if score > (float("-inf") if self.best_score is None else self.best_score):
            return dataclasses.replace(self, best_score=score, best_epoch=epoch, misses=0)
        return dataclasses.replace(self, misses=self.misses + 1)

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.misses >= self.patience

    def to_json(self) -> dict[str, Any]:
        """What an interrupted run has to remember."""
        return {name: getattr(self, name) for name in ("best_score", "best_epoch", "misses")}

    def restored(self, remembered: Mapping[str, Any]) -> "EarlyStopping":
        """The state that `to_json` wrote, with this patience."""
        return dataclasses.replace(self, **remembered)
