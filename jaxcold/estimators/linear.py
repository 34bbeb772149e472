"""Closed forms on data frames: fit in seconds, embed new items, recommend, save, load."""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.data.pairs.evaluation import slices
from jaxcold.estimators import arguments, features, frames, schema
from jaxcold.estimators.base import Recommender
from jaxcold.estimators.features import Content
from jaxcold.estimators.frames import to_distinct_index
from jaxcold.estimators.logs import PairLog, group
from jaxcold.eval.evaluation import best_on_validation
from jaxcold.models import closed_form
from jaxcold.models.closed_form import Projection

METHODS = ("ridge", "whitened_knn")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Recommender):
    """Recommends items by a linear map of their content that follows from the data at once.

    Made by `Linear.fit` or `Linear.load`. "ridge" is ridge regression from content onto clicks,
    "whitened_knn" nearest neighbours in whitened content; see `jaxcold.models.closed_form`. A user
    is the mean of the items' vectors, as of `SEMCo`, and everything else is as there.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame({"user": ["ann", "ann", "bob"], "item": [10, 11, 12]})
        >>> text = pd.DataFrame(np.eye(4), index=[10, 11, 12, 13])
        >>> model = Linear.fit(log, {"text": text}, l2=1.0)
        >>> model.embed({"text": np.eye(4)[:1]}).shape
        (1, 4)
    """

    KIND = "linear"

    @classmethod
    def fit(
        cls,
        interactions: Any,
        content: Content,
        *,
        items: Iterable[Hashable] | None = None,
        columns: Mapping[str | int, str] | None = None,
        method: str = "ridge",
        l2: float | Sequence[float] = closed_form.L2,
        val_fraction: float | None = None,
        seed: int = 0,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        weight: str | None = None,
        min_rating: float | None = None,
        standardize: bool | str = "auto",
        progress: bool = True,
    ) -> "Linear":
        """Solves for the map; of several values of l2 the one that is best on held-out items.

        The items that are held out choose l2 by NDCG@20; then all items with clicks make the map.

        Args:
            interactions: see `SEMCo.fit`.
            content: see `SEMCo.fit`.
            items: ids of the rows of arrays.
            columns: see `SEMCo.fit`.
            method: "ridge" or "whitened_knn".
            l2: regularisation of ridge, or several values to choose from; positive. Modes have
                rows of norm one, so it counts in items.
            val_fraction: fraction of the items with clicks that is held out to choose l2; unset,
                .1, or 0 where that would be fewer than 5 items. With 0 the middle value is taken.
            seed: of the items that are held out.
            user: column of the users' ids.
            item: column of the items' ids.
            rating: column that `min_rating` reads.
            weight: column of weights of the clicks, in the mean of a user.
            min_rating: keeps the rows whose rating is at least this; unset, all rows.
            standardize: see `SEMCo.fit`.
            progress: say on standard error what was made of each raw column.

        Raises:
            DataError: naming the column, mode or id at fault.
            ValueError: for an argument out of range.
        """
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
        values = [float(l2)] if isinstance(l2, int | float | np.number) else [*map(float, l2)]
        with arguments.translate_messages():
            closed_form.check_l2(values)
        arguments.check_fit(
            counts={},
            numbers={"min_rating": min_rating},
            seed=seed,
            val_fraction=val_fraction,
            standardize=standardize,
        )
        names = frames.log_names(
            user=user, item=item, rating=rating, weight=weight, min_rating=min_rating
        )
        ids, given, modes = features.fit(content, items, item, columns, progress)
        log = PairLog.read(interactions, names, ids, min_rating)
        given, modes = features.standardize("Linear", given, modes, log.is_clicked, standardize)
        dataset = log.split(given, 0.0, seed)
        options: dict[str, Any] = {"method": method, "seed": seed, "log": names}
        if method == "ridge":
            options["l2"] = _choose(values, log.split(given, val_fraction, seed))
        projection = _solve(dataset, options)
        histories, weights = group(log.user, log.item, len(log.users), log.weight)
        return cls(
            users=to_distinct_index(dataset.user_ids, "user"),
            items=to_distinct_index(dataset.item_ids, "item"),
            item=closed_form.encode(given, projection),
            warm=log.is_clicked,
            histories=histories,
            weights=weights,
            modes=modes,
            options=options,
            encoder=projection,
        )

    def _embed(self, content: ContentFeatures) -> np.ndarray:
        return closed_form.encode(content, self.encoder)

    def _encoder_arrays(self) -> dict[str, np.ndarray]:
        return {"mean": np.asarray(self.encoder.mean), "kernel": np.asarray(self.encoder.kernel)}

    @classmethod
    def _expected_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
        widths: Mapping[str, int],
        items: int,
    ) -> schema.Schema:
        inputs, size = sum(widths.values()), arrays["kernel"].shape[1]
        return {
            "mean": ((inputs,), "float32"),
            "kernel": ((inputs, size), "float32"),
            "items/embedding": ((items, size), "float32"),
        }

    @classmethod
    def _read_encoder(
        cls, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> Projection:
        if options["method"] not in METHODS:
            raise ValueError(f"options: method is {options['method']!r:.20}")
        mean, kernel = (jnp.asarray(arrays[name]) for name in ("mean", "kernel"))
        return Projection(mean, kernel, unit=options["method"] == "whitened_knn")


def _choose(values: Sequence[float], dataset: Dataset) -> float:
    """The l2 that is best on the items that the data set holds out; the middle one without any."""
    if len(values) == 1 or not len(dataset.split.cold_val_items):
        return values[len(values) // 2]
    models = closed_form.ridge(dataset, l2=values)
    return best_on_validation(models, slices(dataset.split)["val/cold_own"], 20)[0]


def _solve(dataset: Dataset, options: Mapping[str, Any]) -> Projection:
    catalogue = closed_form.Catalogue.of(dataset)
    if options["method"] == "whitened_knn":
        return closed_form.whitening(catalogue)
    l2 = options["l2"]
    return closed_form.ridge_projections(catalogue, jnp.asarray, (l2,))[l2]
