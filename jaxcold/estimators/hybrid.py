"""The recommended model on data frames: a trained encoder and a closed form in one vector."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.estimators import arguments, schema
from jaxcold.estimators.logs import PairLog
from jaxcold.estimators.semco import SEMCo
from jaxcold.models import closed_form, encoders, hybrid, kernel_ease, semco
from jaxcold.models.closed_form import Projection
from jaxcold.models.hybrid import Blend
from jaxcold.types import Csr, Model

# Shapes of the closed form's arrays: k items that new ones are compared with, F whitened features.
_ARRAYS = ("closed/mean", "closed/kernel", "closed/rows", "closed/weights")


class HybridEncoder(NamedTuple):
    """What embeds an item, and what makes a user of items."""

    semco: encoders.Encoder
    closed: kernel_ease.Encoder
    blend: Blend


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Hybrid(SEMCo):
    """Recommends items by their content: `SEMCo` with a closed form beside it.

    Made by `jaxcold.fit`, which is `Hybrid.fit`, or `Hybrid.load`. Arguments and all else are as of
    `SEMCo`, but that `partial_fit` is not there and vectors are no unit rows. Options are those of
    `jaxcold.models.hybrid` too. The items that are held out also choose how much the closed form
    counts, from 0 to 1; it is solved once more with their clicks then.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame({"user": ["ann", "ann", "bob"], "item": [10, 11, 12]})
        >>> text = pd.DataFrame(np.eye(4), index=[10, 11, 12, 13])
        >>> model = Hybrid.fit(log, {"text": text}, epochs=1, hidden=4, out=2, progress=False)
        >>> model.recommend(["bob"], k=3, candidates="cold")[["user", "item", "rank"]]
          user  item  rank
        0  bob    13     1
    """

    KIND = "hybrid"
    BUILDS: ClassVar[tuple[Callable[..., Any], ...]] = (hybrid.build, hybrid.solve, semco.build)

    @classmethod
    def from_training(
        cls,
        dataset: Dataset,
        model: Model,
        params: Any,
        model_state: Any,
        options: Mapping[str, Any],
    ) -> Self:
        """A recommender from the result of a training.

        Args:
            dataset: that the model was built on; its training pairs become the users' histories.
            model: from `jaxcold.models.hybrid.build`.
            params: trained.
            model_state: of the training, with the weight that was chosen.
            options: how it was trained, for the record; JSON can hold it.
        """
        weight = float(np.asarray(model_state["weight"]))
        fitted = super().from_training(
            dataset, model, params, model_state, {**options, "closed_weight": weight}
        )
        arrays = encoders.encoder_arrays(fitted.encoder)
        out = encoders.Shape.of(fitted.widths.values(), arrays).out
        blend = Blend.of(fitted.item[dataset.split.warm_items], out, weight)
        encoder = HybridEncoder(fitted.encoder, model.saved, blend)
        return dataclasses.replace(fitted, encoder=encoder)

    def partial_fit(self, *args: Any, **options: Any) -> Self:
        """Not there: a closed form has nothing to train on from.

        Raises:
            ValueError: always, with what to do instead.
        """
        del args, options
        raise ValueError("a hybrid cannot be trained on; use add_clicks, or fit a new one")

    def _completed(self, log: PairLog, given: ContentFeatures) -> Self:
        dataset = log.split(given, 0.0, seed=0)  # nothing is held out, so that no seed counts
        trained, _, blend = self.encoder
        options = arguments.build_options((hybrid.solve,), self.options)
        closed, rows = hybrid.solve(dataset, **options)
        out = len(blend.encoder)
        item = np.concatenate([self.item[:, :out], rows], axis=1)
        blend = Blend.of(item[dataset.split.warm_items], out, blend.weight)
        return dataclasses.replace(self, item=item, encoder=HybridEncoder(trained, closed, blend))

    def _embed(self, content: ContentFeatures) -> np.ndarray:
        present = [content.present[mode] for mode in content.tables]
        tables = list(content.tables.values())
        rows = encoders.encode(self.encoder.semco, tables, present)
        return np.concatenate([rows, closed_form.encode(content, self.encoder.closed)], axis=1)

    def _encode_users(self, histories: Csr, weights: np.ndarray | None) -> np.ndarray:
        return self.encoder.blend.users(self.item, histories, weights)

    def _click_blocks(self, rows: np.ndarray) -> list[tuple[np.ndarray, slice]]:
        out = len(self.encoder.blend.encoder)
        ranked = out + len(self.encoder.blend.closed)
        return [(rows[:, :out], slice(out)), (rows[:, ranked:], slice(out, ranked))]

    def _encoder_arrays(self) -> dict[str, np.ndarray]:
        trained, closed, blend = self.encoder
        values = (closed.white.mean, closed.white.kernel, closed.rows, closed.weights)
        return {
            **encoders.encoder_arrays(trained),
            **{name: np.asarray(x) for name, x in zip(_ARRAYS, values, strict=True)},
            "blend/encoder": blend.encoder,
            "blend/closed": blend.closed,
        }

    @classmethod
    def _expected_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
        widths: Mapping[str, int],
        items: int,
    ) -> schema.Schema:
        expected = super()._expected_arrays(arrays, options, widths, items)
        out = expected["items/embedding"][0][1]
        assert out is not None
        inputs, features = sum(widths.values()), arrays["closed/kernel"].shape[1]
        compared, width = len(arrays["closed/rows"]), len(arrays["blend/closed"])
        shapes = ((inputs,), (inputs, features), (compared, features), (compared, 2 * width))
        return {
            **expected,
            **{name: (shape, "float32") for name, shape in zip(_ARRAYS, shapes, strict=True)},
            "blend/encoder": ((out, out), "float32"),
            "blend/closed": ((width, width), "float32"),
            "items/embedding": ((items, out + 2 * width), "float32"),
        }

    @classmethod
    def _read_encoder(
        cls, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> HybridEncoder:
        weight = options["closed_weight"]
        if type(weight) is not float or not 0 <= weight <= 1:
            raise ValueError(f"options: closed_weight is {weight!r:.20}, not a number from 0 to 1")
        mean, kernel, rows, weights = (jnp.asarray(arrays[name]) for name in _ARRAYS)
        return HybridEncoder(
            encoders.encoder_from_arrays(arrays),
            kernel_ease.Encoder(Projection(mean, kernel, unit=True), rows, weights),
            Blend(arrays["blend/encoder"], arrays["blend/closed"], weight),
        )


fit = Hybrid.fit
