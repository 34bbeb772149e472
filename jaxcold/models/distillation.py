"""SEMCo with distillation: a wide teacher on the content, a small student on the teacher.

The student is trained on the contrastive loss of `jaxcold.models.semco` and on the similarities
among items that its teacher has. Offline the teacher is trained first and then frozen; online both
train together, and the student's input is a moving average of the teacher's outputs. The two
differ only in the schedule of the groups "teacher" and "student".

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, section 3.3.2 and equation 8.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models import encoders, pair_batches, semco
from jaxcold.models.item_similarity import (
    moving_average,
    similarity_logits,
    similarity_loss,
    sub_batch,
)
from jaxcold.models.layers import Compute
from jaxcold.models.transforms import adam_coupled_l2, cosine, warm_up
from jaxcold.sparse import entmax
from jaxcold.types import Model

# Steps between measurements of the probabilities' support, each of which costs a few searches.
MEASURE_EVERY = 10

# Metrics of a measurement; NaN at the other steps, and before the student starts.
MEASURED = (
    "support/student",
    "support/teacher",
    "target_in_support/student",
    "target_in_support/teacher",
    "ema_drift",
)

# The rows of `ModelState`, which are sharded by items where tables are.
SHARDED_STATE = ("outputs", "average")


class ModelState(NamedTuple):
    """State without gradients."""

    step: Array  # i32[]
    outputs: Array  # f32[N, D] the teacher's rows for the warm items, as of its last step
    average: Array  # f32[N, D] their moving average, unit rows: the student's input


class Schedule(NamedTuple):
    """The steps in which each group is trained."""

    teacher_stops: int  # the teacher is trained in steps 0 .. teacher_stops - 1
    student_starts: int  # the student is trained from this step on


class _Losses(NamedTuple):
    """The losses of both groups; the fields are explained at `build`."""

    teacher: nnx.GraphDef
    student: nnx.GraphDef
    schedule: Schedule
    alpha: float
    tau: float
    teacher_tau: float
    gradient: semco.Gradient
    user_vector: str
    ema: float
    lam: float
    omega: float
    positives: int
    items: int
    compute: Compute
    shard_items: bool

    def _contrast(
        self,
        rows: Array,
        tau: float,
        constants: pair_batches.Constants,
        batch: pair_batches.Batch,
        axis: str | None,
    ) -> Array:
        """The contrastive loss of a batch on item embeddings, averaged over its rows."""
        histories, positive, weight = pair_batches.unpack(
            constants, batch, len(constants.features[0]), axis
        )
        total, count = semco.contrast(
            rows,
            histories,
            positive,
            weight,
            alpha=self.alpha,
            tau=tau,
            gradient=self.gradient,
            user_vector=self.user_vector,
            compute=self.compute,
            axis=axis,
        )
        return total / jnp.maximum(count, 1)

    def _own_rows(self, rows: Array, axis: str | None) -> Array:
        """The rows of a device's items, of a table in the model state."""
        return rows if self.shard_items else parallel.shard(rows, axis)

    def teacher_loss(
        self,
        params: dict[str, nnx.State],
        model_state: ModelState,
        constants: pair_batches.Constants,
        batch: pair_batches.Batch,
        key: Array,
        *,
        axis: str | None = None,
    ) -> tuple[Array, tuple[Array, ModelState, dict[str, Array]]]:
        """The teacher's contrastive loss; its outputs and their average go to the model state."""
        del key  # nothing random
        own_items = len(constants.features[0])
        teacher = nnx.merge(self.teacher, params["teacher"])

        # The state has the rows of all items, or those of this device's items. Rows beyond the last
        # item are zero.
        def state_rows(rows: Array) -> Array:
            rows = jax.lax.stop_gradient(rows)
            if not self.shard_items:
                return parallel.gather(rows, axis)[: self.items]
            row = parallel.index(axis) * own_items + jnp.arange(own_items)
            return jnp.where((row < self.items)[:, None], rows, 0)

        def encode() -> Array:
            return teacher(constants.features, teacher.fold(constants.moments), constants.present)

        def train() -> tuple[Array, Array]:
            rows = encode()
            return self._contrast(rows, self.teacher_tau, constants, batch, axis), state_rows(rows)

        # After its last step the teacher encodes once more; from then on its outputs stay.
        loss, outputs = jax.lax.switch(
            jnp.clip(model_state.step - self.schedule.teacher_stops + 1, 0, 2),
            [
                train,
                lambda: (jnp.zeros(()), state_rows(encode())),
                lambda: (jnp.zeros(()), model_state.outputs),
            ],
        )
        average = moving_average(model_state.average, outputs, self.ema, model_state.step == 0)
        count = jnp.sum(batch.epoch.weight[batch.at])
        model_state = model_state._replace(outputs=outputs, average=average)
        return loss * count, (count / parallel.size(axis), model_state, {})

    def student_loss(
        self,
        params: dict[str, nnx.State],
        model_state: ModelState,
        constants: pair_batches.Constants,
        batch: pair_batches.Batch,
        key: Array,
        *,
        axis: str | None = None,
    ) -> tuple[Array, tuple[Array, ModelState, dict[str, Array]]]:
        """The student's contrastive loss and the distillation; 0 before the student starts."""
        student = nnx.merge(self.student, params["student"])
        own_items = len(constants.features[0])
        user, weight = batch.epoch.user[batch.at], batch.epoch.weight[batch.at]
        # The sampler's users have all of their items, on every device.
        whole = constants
        if constants.unsharded is not None:
            indptr, indices = constants.unsharded
            whole = constants._replace(indptr=indptr, indices=indices)

        def encode() -> tuple[Array, Array, tuple[Array, Array], Array]:
            """The student's rows and its input; both at the items of the distillation; which.

            Each of several devices has the rows of its items, and its shard of the distillation's.
            """
            ids, kept = sub_batch(
                key, whole, user, weight, items=self.items, positives=self.positives
            )
            inputs = self._own_rows(model_state.average, axis)
            rows = student(inputs)
            at = parallel.local_index(ids, own_items, axis)
            compared = (
                parallel.gather_rows(rows, at, axis),
                parallel.gather_rows(inputs, at, axis),
            )
            return rows, inputs, compared, kept

        def train() -> tuple[Array, Array]:
            rows, _, compared, kept = encode()
            distilled, _ = similarity_loss(
                *compared,
                kept,
                alpha=self.alpha,
                omega=self.omega,
                compute=self.compute,
                axis=axis,
            )
            return self._contrast(rows, self.tau, constants, batch, axis), distilled

        def measure() -> dict[str, Array]:
            outputs = self._own_rows(model_state.outputs, axis)
            return self._measure(encode(), outputs, constants, batch, axis)

        started = model_state.step >= self.schedule.student_starts
        zeros = (jnp.zeros(()), jnp.zeros(()))
        contrastive, distilled = jax.lax.cond(started, train, lambda: zeros)
        unknown = dict.fromkeys(MEASURED, jnp.full((), jnp.nan))
        due = (model_state.step % MEASURE_EVERY == 0) & started
        measured = jax.lax.stop_gradient(jax.lax.cond(due, measure, lambda: unknown))
        metrics = {"contrastive": contrastive, "distillation": distilled, **measured}
        count = jnp.sum(weight)
        total = (self.lam * contrastive + distilled) * count
        model_state = model_state._replace(step=model_state.step + 1)
        return total, (count / parallel.size(axis), model_state, metrics)

    def _measure(
        self,
        encoded: tuple[Array, Array, tuple[Array, Array], Array],
        outputs: Array,
        constants: pair_batches.Constants,
        batch: pair_batches.Batch,
        axis: str | None,
    ) -> dict[str, Array]:
        """Sizes of supports, hits of targets in them, and the drift of the average: `MEASURED`."""
        rows, inputs, compared, kept = encoded
        histories, positive, weight = pair_batches.unpack(
            constants, batch, len(constants.features[0]), axis
        )
        real = parallel.pad_rows(weight > 0, axis)
        bias = jnp.where(real, 0.0, semco.ABSENT)

        def scores(rows: Array, tau: float) -> Array:
            users = semco.user_vectors(rows, histories, None, axis)
            columns = parallel.gather(parallel.gather_rows(rows, positive, axis), axis)
            scale = tau**2 if self.alpha > 1 else tau
            return semco.logits(users / scale, columns, bias, self.compute)

        # One search over all four arrays: it is compiled once.
        similarities = [
            similarity_logits(x, kept, self.omega, self.compute, axis) for x in compared
        ]
        student_scores = scores(rows, self.tau)
        padding = [
            (0, to - size)
            for size, to in zip(similarities[0].shape, student_scores.shape, strict=True)
        ]
        similarities = [jnp.pad(z, padding, constant_values=semco.ABSENT) for z in similarities]
        teacher_scores = scores(outputs, self.teacher_tau)
        logits = jnp.stack([*similarities, student_scores, teacher_scores])
        in_support = entmax(logits, self.alpha) > 0
        columns = parallel.pad_rows(kept, axis)
        both = jnp.pad(parallel.shard(kept, axis)[:, None] & columns[None, :], padding)
        support = jnp.sum(in_support[:2] & both[None], (1, 2)) / jnp.maximum(kept.sum(), 1) ** 2
        number = parallel.shard(jnp.arange(len(real)), axis)
        hit = jnp.take_along_axis(in_support[2:], number[None, :, None], 2)[..., 0]
        hit &= parallel.shard(real, axis)[None]
        hits = hit.sum(1) / jnp.maximum((weight > 0).sum(), 1)
        # 1 - cosine of unit rows, written so that equal ones give 0. Devices' metrics add up.
        drift = jnp.sum((inputs - outputs) ** 2) / (2 * self.items)
        return dict(zip(MEASURED, (*support, *hits, drift), strict=True))


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    epochs: int,
    online: bool,
    alpha: float,
    tau: float,
    teacher_tau: float,
    lam: float,
    omega: float,
    positives: int,
    l2: float = 1e-4,
    learning_rate: float = 1e-3,
    warmup_epochs: int = 0,
    teacher_epochs: int = 15,
    ema: float = 0.0,
    gradient: semco.Gradient = "fenchel_young",
    hidden: int = 192,
    out: int = 64,
    teacher_hidden: int = 384,
    teacher_out: int = 384,
    attention_layers: int = 1,
    batch_norm: str = "catalogue",
    user_vector: str = "mean",
    compute: Compute = "float32",
    teachers: Mapping[int, nnx.State] | None = None,
    devices: parallel.Devices = parallel.ONE,
) -> Model:
    """SEMCo with distillation on a data set: the groups "teacher" and "student", in that order.

    As the authors have it, the teacher's learning rate decays by a cosine and its gradient has
    coupled L2; the student's rate is constant after the warm-up, without L2.

    Args:
        dataset: see `semco.build`.
        batch_size: see `semco.build`; also the items of a distillation step.
        epochs: in which the student is trained.
        online: train both together; else the student after the teacher.
        alpha: of all three losses, in [1, 2].
        tau: temperature of the student's contrastive loss.
        teacher_tau: temperature of the teacher's.
        lam: lambda, weight of the student's contrastive loss against the distillation.
        omega: temperature of the distillation.
        positives: items drawn per user for the distillation, see `sub_batch`.
        l2: weight decay added to the teacher's gradient.
        learning_rate: of both optimizers, at its highest.
        warmup_epochs: in which the student's rate rises linearly from 0.
        teacher_epochs: in which the teacher is trained.
        ema: momentum of the moving average that is the student's input; 0 is the teacher itself.
        gradient: of the contrastive losses, see `semco.build`.
        hidden: width of the student's hidden layer.
        out: width of the student's embeddings, those that are served.
        teacher_hidden: width of each mode's first layer in the teacher.
        teacher_out: width of the teacher's embeddings.
        attention_layers: see `semco.build`.
        batch_norm: see `semco.build`.
        user_vector: see `semco.build`.
        compute: see `semco.build`.
        teachers: seed to the parameters of a trained teacher; it stays frozen, and `teacher_epochs`
            is ignored.
        devices: see `semco.build`; with ``devices.shard_items`` the teacher's outputs are sharded
            by items too.

    Raises:
        ValueError: for an argument out of range, naming it and what it may be.
    """
    semco.check(
        gradient,
        user_vector,
        compute,
        alpha,
        positive={"tau": tau, "teacher_tau": teacher_tau, "omega": omega},
        sizes={
            "hidden": hidden,
            "out": out,
            "positives": positives,
            "teacher_hidden": teacher_hidden,
            "teacher_out": teacher_out,
        },
    )
    semco.check_training(epochs, learning_rate, l2)
    if teacher_epochs < 1 and teachers is None:
        raise ValueError(f"model.teacher_epochs is at least 1, not {teacher_epochs}")
    if warmup_epochs < 0:
        raise ValueError(f"model.warmup_epochs is at least 0, not {warmup_epochs}")
    if not lam >= 0:
        raise ValueError(f"model.lam is at least 0, not {lam}")
    if not 0 <= ema < 1:
        raise ValueError(f"model.ema is at least 0 and below 1, not {ema}")
    data = pair_batches.prepare(
        dataset,
        batch_size=batch_size,
        batch_norm=batch_norm,
        compute=compute,
        devices=devices,
        unsharded_histories=True,
    )
    steps = data.steps_per_epoch
    pretraining = 0 if online or teachers is not None else teacher_epochs
    schedule = Schedule(
        teacher_stops=0 if teachers is not None else teacher_epochs * steps,
        student_starts=pretraining * steps,
    )
    shape = encoders.Shape(
        data.widths, teacher_hidden, teacher_out, attention_layers, (hidden, out), compute
    )
    teacher_graph, teacher_shapes = shape._replace(student=None).split()
    student_graph = encoders.student_graph(shape)
    items = len(dataset.split.warm_items)

    def init(seed: int) -> tuple[dict[str, nnx.State], ModelState]:
        fresh = nnx.split(shape.make(jax.random.key(seed)))[1]
        params = {group: nnx.State(fresh[group]) for group in ("teacher", "student")}
        if teachers is not None:
            given, wanted = (
                jax.tree.map(jnp.shape, nnx.to_pure_dict(t))
                for t in (teachers[seed], teacher_shapes)
            )
            if given != wanted:
                raise ValueError(
                    "the teacher has other layers than this run expects; set model.teacher_hidden, "
                    "model.teacher_out and model.attention_layers to its own, on the same data"
                )
            params["teacher"] = jax.tree.map(jnp.array, teachers[seed])
        # Two buffers: a step donates both.
        size = (devices.rows(items) if devices.shard_items else items), teacher_out
        rows = [jnp.zeros(size, device=devices.sharding(devices.shard_items)) for _ in range(2)]
        return params, ModelState(jnp.zeros((), jnp.int32), *rows)

    def encode_items(
        params: dict[str, nnx.State],
        model_state: ModelState,
        content: ContentFeatures | None = None,
    ) -> np.ndarray:
        # While the teacher is trained first, it is what can be evaluated.
        if int(model_state.step) <= schedule.student_starts and schedule.student_starts > 0:
            return data.encode_items(params["teacher"], content)
        return data.encode_items(encoders.joined(params), content)

    losses = _Losses(
        teacher=teacher_graph,
        student=student_graph,
        schedule=schedule,
        alpha=alpha,
        tau=tau,
        teacher_tau=teacher_tau,
        gradient=gradient,
        user_vector=user_vector,
        ema=ema if online else 0.0,
        lam=lam,
        omega=omega,
        positives=positives,
        items=items,
        compute=compute,
        shard_items=devices.shard_items,
    )
    sharding = pair_batches.SHARDING
    return Model(
        constants=data.constants,
        init=init,
        losses={"teacher": losses.teacher_loss, "student": losses.student_loss},
        optimizers=optimizers(
            schedule, learning_rate=learning_rate, l2=l2, warmup_steps=warmup_epochs * steps
        ),
        batches=data.batches,
        encode_items=encode_items,
        encode_users=semco.encode_users,
        steps_per_epoch=steps,
        examples_per_epoch=data.examples_per_epoch,
        epochs=pretraining + epochs,
        pretraining_epochs=pretraining,
        examples=data.examples,
        devices=devices,
        sharding=sharding._replace(state=SHARDED_STATE) if devices.shard_items else sharding,
    )


def optimizers(
    schedule: Schedule, *, learning_rate: float, l2: float, warmup_steps: int
) -> dict[str, optax.GradientTransformation]:
    """Adam for both groups, each within its own steps.

    Outside them neither the parameters nor the optimizer's state change: a student that starts
    late starts like a fresh run.

    Args:
        schedule: the steps of each group; the teacher's cosine ends with its last one.
        learning_rate: of both at its highest.
        l2: of the teacher.
        warmup_steps: of the student.
    """
    cosine_rate = cosine(learning_rate, max(schedule.teacher_stops, 1))
    teacher = adam_coupled_l2(cosine_rate, l2)
    student = adam_coupled_l2(warm_up(learning_rate, warmup_steps), 0.0)
    return {
        "teacher": optax.conditionally_mask(teacher, lambda step: step < schedule.teacher_stops),
        "student": optax.conditionally_mask(student, lambda step: step >= schedule.student_starts),
    }
