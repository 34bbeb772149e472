"""A model's metrics on evaluation slices."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxcold import parallel
from jaxcold.eval.metrics import Metrics, evaluate
from jaxcold.eval.ranking import top_k
from jaxcold.types import Csr, EvalSlice, Model, Representations


def evaluate_model(
    model: Model,
    params: Any,
    model_state: Any,
    slices: Mapping[str, EvalSlice],
    cutoffs: Sequence[int],
    ties: Literal["expected", "id"] = "expected",
) -> dict[str, Metrics]:
    """Metrics of every slice, by its name.

    Items are encoded once, and users once for all slices that share their histories.

    Args:
        model: its vectors rank the candidates.
        params: of the model.
        model_state: of the model.
        slices: by name.
        cutoffs: list lengths to report.
        ties: of candidates with equal scores, such as items of equal content. "expected": the
            metrics are expected values over their random orders. "id": they are ranked by ascending
            item id, which favours the popular ones wherever ids were given in order of appearance.

    Raises:
        ValueError: for another value of `ties`.
    """
    if ties not in ("expected", "id"):
        raise ValueError(f"ties is 'expected' or 'id', not {ties!r}")
    items = model.encode_items(params, model_state)
    encoded: list[tuple[Csr, np.ndarray]] = []
    result = {}
    for name, eval_slice in slices.items():
        histories = eval_slice.histories
        known = [users for read, users in encoded if read is histories]
        users = known[0] if known else model.encode_users(params, model_state, items, histories)
        if not known:
            encoded.append((histories, users))
        devices = model.devices or parallel.ONE
        lists = top_k(
            Representations(users, items),
            eval_slice,
            max(cutoffs),
            tie_cutoffs=cutoffs if ties == "expected" else (),
            devices=devices,
        )
        result[name] = evaluate(lists, eval_slice, cutoffs)
    return result


def best_on_validation(
    models: Mapping[float, Model], eval_slice: EvalSlice, cutoff: int
) -> tuple[float, dict[float, float]]:
    """The key of the model without training whose NDCG is best, and the NDCG of every key.

    Args:
        models: by the value that tells them apart; of equal scores the first one's wins.
        eval_slice: of validation.
        cutoff: length of the lists.
    """
    scores = {}
    for value, model in models.items():
        metrics = evaluate_model(model, *model.init(0), {"": eval_slice}, (cutoff,))[""]
        scores[value] = metrics.mean()[f"ndcg@{cutoff}"]
    return max(scores, key=scores.__getitem__), scores
