"""Training with a bar, a curve and held-out clicks that choose what is served."""

import contextlib
import dataclasses
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxcold.eval.evaluation import evaluate_model
from jaxcold.reporting.progress import Progress
from jaxcold.train.early_stopping import EarlyStopping
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import TrainState, init_state, make_step
from jaxcold.types import EvalSlice, Model

_STEPS = 900  # of the training that a small log gets by default


class Validation(NamedTuple):
    """What a fit holds out, and how it chooses with it."""

    eval_slice: EvalSlice
    metric: str  # that decides, such as "ndcg@20"; higher is better
    patience: int  # evaluations without a gain after which training ends
    baselines: Mapping[str, Model]  # without training; the best of them is served where it wins
    every: int = 1  # epochs from one evaluation to the next
    # How to fit it -> model without training; a warning names the best where it is better than what
    # is served.
    rivals: Mapping[str, Model] = types.MappingProxyType({})

    def score(self, model: Model, params: Any = (), model_state: Any = ()) -> float:
        """The metric of a model."""
        cutoff = int(self.metric.partition("@")[2])
        slices = {"val": self.eval_slice}
        metrics = evaluate_model(model, params, model_state, slices, [cutoff])["val"]
        return metrics.mean()[self.metric]


def sizes_for(
    examples: int, *, batch: tuple[float, int, int], epochs: tuple[int, int]
) -> tuple[int, int]:
    """Batch size and epochs that give a log of any size `_STEPS` steps or more.

    Args:
        examples: of an epoch.
        batch: the size that is wanted, rounded to a power of two, the least and the most.
        epochs: the least and the most.
    """
    size = 2 ** int(np.clip(np.round(np.log2(max(batch[0], 1))), *np.log2(batch[1:])))
    steps = -(-examples // size)
    return size, int(np.clip(-(-_STEPS // steps), *epochs))


class Trained(NamedTuple):
    """The result of a training."""

    params: Any  # of the best epoch; without validation of the last one
    model_state: Any
    history: pd.DataFrame  # a row per evaluated epoch, or per epoch
    served: str | None  # the baseline that is better than the best epoch, if one is
    record: dict[str, Any]  # best epoch and scores, for the options


def train(
    title: str,
    model: Model,
    *,
    seed: int,
    progress: bool,
    remedy: str,
    validation: Validation | None = None,
    start: Callable[[Any], Any] | None = None,
) -> Trained:
    """Trains a model, with a progress bar if wanted, and keeps its best epoch.

    Args:
        title: of the estimator, to begin messages with.
        model: to train for its epochs.
        seed: of parameters and batches.
        progress: show a bar.
        remedy: what to try where the loss is not finite.
        validation: chooses the epoch, and between it and the baselines; None: the last epoch.
        start: fresh parameters to those that training starts from; None: they are.

    Returns:
        Its history has the columns epoch, loss (the mean of the epoch), and with validation the
        metric, and that of each baseline by its name.

    Raises:
        DivergedError: if the loss is not finite, with what to try.
    """
    stopping = EarlyStopping(validation.patience if validation else None)
    scores = {}
    if validation:
        scores = {name: validation.score(m) for name, m in validation.baselines.items()}
    rows: list[dict[str, Any]] = []
    losses: list[float] = []
    kept: dict[str, Any] = {"stopping": stopping}
    total = model.epochs * model.steps_per_epoch
    bar = Progress(title, total=total, unit="steps") if progress else None

    def on_step(step: int, metrics: dict[str, float]) -> None:
        losses.append(metrics["loss"])
        if bar:
            bar.advance(1, metrics["loss"])

    def on_epoch(epoch: int, state: TrainState) -> bool:
        row = {"epoch": epoch, "loss": float(np.mean(losses))}
        losses.clear()
        if validation and epoch % validation.every and epoch != model.epochs:
            return False
        if validation:
            row[validation.metric] = validation.score(model, state.params, state.model_state)
            kept["stopping"] = kept["stopping"].update(epoch, row[validation.metric])
            if kept["stopping"].best_epoch == epoch:
                # A copy: the next step donates the state's buffers.
                kept["state"] = jax.tree.map(np.array, (state.params, state.model_state))
        rows.append(row | scores)
        return kept["stopping"].should_stop

    state = init_state(model, seed)
    if start is not None:
        # A copy: the first step donates the state's buffers.
        state = state._replace(params=jax.tree.map(jax.numpy.array, start(state.params)))
    with bar or contextlib.nullcontext():
        try:
            state = fit(
                model, make_step(model), state, seed=seed, on_step=on_step, on_epoch=on_epoch
            )
        except DivergedError as error:
            raise DivergedError(f"{error}; try {remedy}") from None
    history = pd.DataFrame(rows)
    if validation is None:
        return Trained(state.params, state.model_state, history, None, {"epoch": model.epochs})
    stopping = kept["stopping"]
    record: dict[str, Any] = {
        "epoch": stopping.best_epoch,
        f"val_{validation.metric}": stopping.best_score,
    }
    record |= {f"val_{validation.metric}_{name}": score for name, score in scores.items()}
    params, model_state = kept.get("state", (state.params, state.model_state))
    if model.choose is not None:
        model_state = model.choose(
            params, model_state, lambda *tried: validation.score(model, *tried)
        )
        stopping = dataclasses.replace(
            stopping, best_score=validation.score(model, params, model_state)
        )
        record[f"val_{validation.metric}"] = stopping.best_score
    served = None
    if scores:
        name = max(scores, key=scores.__getitem__)
        if scores[name] > (stopping.best_score or 0.0):
            served = name
            warnings.warn(
                f"{title}: on what was held out {name} has {validation.metric} {scores[name]:.4f}, "
                f"the trained model {stopping.best_score or 0:.4f}; the vectors of {name} are "
                "served. val_fraction=0 trains without a comparison",
                stacklevel=3,
            )
    best = scores[served] if served else (stopping.best_score or 0.0)
    _name_rivals(title, validation, best)
    return Trained(params, model_state, history, served, record)


def _name_rivals(title: str, validation: Validation, score: float) -> None:
    """Says which method without training is better than a score, if one is."""
    scores = {name: validation.score(model) for name, model in validation.rivals.items()}
    name = max(scores, key=scores.__getitem__, default="")
    if name and scores[name] > score:
        warnings.warn(
            f"{title}: on what was held out {name} has {validation.metric} {scores[name]:.4f}, "
            f"what is served {score:.4f}",
            stacklevel=4,
        )
