"""SEMCo with distillation: a wide teacher on the content, a small student on the teacher.

The student learns the recommendations (the contrastive loss of `jaxcold.models.semco`) and the
similarities among items that its teacher sees. Offline the teacher is trained first and then
frozen; online both train together, and the student looks at a moving average of the teacher.
Both are one step with a clock: who learns at which step is all that differs.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, section 3.3.2 and equation 8.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import encoders, semco, semco_data
from jaxcold.models.layers import Compute, unit_rows
from jaxcold.sparse import entmax, fenchel_young_loss
from jaxcold.types import Model, Representations

# Steps between measurements of the probabilities' support, each of which costs a few searches.
LOG_EVERY = 10

# Rounds of drawing after which a sub-batch is as full as it gets: the users of a batch may own
# fewer items than it has places.
ROUNDS = 16

# What is measured then; NaN at the other steps, and while there is no student.
MEASURED = (
    "support/student",
    "support/teacher",
    "target_in_support/student",
    "target_in_support/teacher",
    "ema_drift",
)


# The rows of `Extra`, where every device has those of its items and no others.
ROWS = ("outputs", "average")


class Extra(NamedTuple):
    """State without gradients."""

    step: Array  # i32[]
    outputs: Array  # f32[N, D] the teacher's rows for the warm items, as of its last step
    average: Array  # f32[N, D] what the student sees: their moving average, unit rows


class Clock(NamedTuple):
    """Who learns when, in steps."""

    teacher: int  # the teacher learns in steps 0 .. teacher - 1
    student: int  # the student learns from this step on


def moving_average(old: Array, new: Array, momentum: float, first: Array | bool) -> Array:
    """``unit_rows(momentum * old + (1 - momentum) * new)``; the first value is taken whole.

    Args:
        old: [N, D] unit rows.
        new: [N, D].
        momentum: in [0, 1).
        first: whether there is nothing old yet.
    """
    return unit_rows(jnp.where(first, new, momentum * old + (1 - momentum) * new))


def sub_batch(
    key: Array, fixed: semco_data.Fixed, user: Array, weight: Array, *, items: int, positives: int
) -> tuple[Array, Array]:
    """Draws the items of the distillation loss: several of each of some of the batch's users.

    A round takes ``B // positives`` of the batch's distinct users without replacement and
    `positives` items of each one's history with replacement. Rounds go on until more than B
    distinct items are found, of which B are kept at random. A batch of fewer distinct users than a
    round takes gives one round with all of them.

    Args:
        key: of this step.
        fixed: the users' histories.
        user: i32[B].
        weight: [B]; rows of weight 0 are not there.
        items: N, warm items.
        positives: items drawn per user and round.

    Returns:
        i32[min(B, N)] distinct items and bool[min(B, N)], False for unused places.
    """
    size = user.shape[0]
    taken = max(1, size // positives)
    place = jnp.arange(size)
    users = fixed.indptr.shape[0] - 1
    at = jnp.where(weight > 0, user, users)
    leads = jnp.full(users, size).at[at].min(place, mode="drop")[user] == place
    leads &= weight > 0
    few = leads.sum() < taken

    def draw(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, found = state
        who, what = jax.random.split(jax.random.fold_in(key, done))
        order, chosen = jax.lax.top_k(jnp.where(leads, jax.random.uniform(who, (size,)), -1), taken)
        start = fixed.indptr[user[chosen]]
        length = fixed.indptr[user[chosen] + 1] - start
        share = jax.random.uniform(what, (taken, positives))
        nth = jnp.minimum((share * length[:, None]).astype(jnp.int32), length[:, None] - 1)
        drawn = fixed.indices[start[:, None] + nth]
        drawn = jnp.where(order[:, None] >= 0, drawn, items)
        return done + 1, found.at[drawn].set(True, mode="drop")

    def short(state: tuple[Array, Array]) -> Array:
        done, found = state
        limit = jnp.where(few, 1, ROUNDS)
        return (done < limit) & (found.sum() <= size)

    start = jnp.zeros((), jnp.int32), jnp.zeros(items, bool)
    _, found = jax.lax.while_loop(short, draw, start)
    last = jax.random.uniform(jax.random.fold_in(key, ROUNDS), (items,))
    order, kept = jax.lax.top_k(jnp.where(found, last, -1), min(size, items))
    return kept.astype(jnp.int32), order >= 0


def _similarities(
    rows: Array,
    kept: Array,
    omega: Array | float,
    compute: Compute = "float32",
    axis: str | None = None,
) -> Array:
    """[n, n] cosines over omega, -1 on the diagonal; columns that are not kept are absent.

    Of many devices each has its share of the rows and computes that of the result.
    """
    kept = parallel.pad_rows(kept, axis)
    every = parallel.gather(rows, axis)
    logits = semco.logits(rows / omega, every, jnp.where(kept, 0.0, semco.ABSENT), compute)
    place = jnp.arange(every.shape[0])
    diagonal = parallel.shard(place, axis)[:, None] == place[None, :]
    return jnp.where(diagonal & kept[None, :], -1 / omega, logits)


def similarity_loss(
    student: Array,
    teacher: Array,
    kept: Array,
    *,
    alpha: float,
    omega: Array | float,
    compute: Compute = "float32",
    axis: str | None = None,
) -> tuple[Array, Array]:
    """Distillation of item similarities (paper, equation 8).

    With z the cosines among the items, -1 on the diagonal, over omega: the Fenchel-Young loss of
    the student's z against entmax of the teacher's. It is 0 where the two agree. (The authors'
    cross-entropy for softmax lies above it by the entropy of the teacher's probabilities, which no
    gradient sees.)

    Args:
        student: [n, d] unit rows.
        teacher: [n, D] unit rows of the same items; constant.
        kept: bool[n]; the other places hold nothing.
        alpha: of the entmax.
        omega: temperature; it enters once.
        compute: of the products, see `semco.build`.
        axis: of the devices. Each has its share of the rows, `jaxcold.parallel.shard`, and of the
            results; their losses add up to the mean.

    Returns:
        The mean over the kept rows, and the teacher's probabilities [n, n].
    """
    common = kept, omega, compute, axis
    target = entmax(_similarities(jax.lax.stop_gradient(teacher), *common), alpha)
    losses = fenchel_young_loss(_similarities(student, *common), target, alpha)
    count = jnp.maximum(kept.sum(), 1)
    return jnp.sum(jnp.where(parallel.shard(kept, axis), losses, 0)) / count, target


def _loss(
    params: nnx.State,
    extra: Extra,
    fixed: semco_data.Fixed,
    batch: semco_data.Batch,
    key: Array,
    *,
    graphdef: nnx.GraphDef,
    clock: Clock,
    alpha: float,
    tau: float,
    teacher_tau: float,
    gradient: semco.Gradient,
    user_vector: str,
    ema: float,
    lam: float,
    omega: float,
    positives: int,
    items: int,
    compute: Compute = "float32",
    shard_items: bool = False,
    axis: str | None = None,
) -> tuple[Array, tuple[Array, Extra, dict[str, Array]]]:
    encoder = nnx.merge(graphdef, params)
    own_items = len(fixed.features[0])
    histories, positive, weight = semco_data.unpack(fixed, batch, own_items, axis)
    # The sampler's users have all of their items, on every device.
    whole = fixed
    if fixed.whole is not None:
        whole = fixed._replace(indptr=fixed.whole[0], indices=fixed.whole[1])
    user, count = batch.epoch.user[batch.at], jnp.sum(weight)
    step = extra.step
    contrast = functools.partial(
        semco.contrast,
        histories=histories,
        positive=positive,
        weight=weight,
        alpha=alpha,
        gradient=gradient,
        user_vector=user_vector,
        compute=compute,
        axis=axis,
    )

    # The state has all rows or those of this device's items, which is all that an encoder makes;
    # rows beyond the last item are zero.
    def kept_rows(rows: Array) -> Array:
        if not shard_items:
            return parallel.gather(rows, axis)[:items]
        row = parallel.index(axis) * own_items + jnp.arange(own_items)
        return jnp.where((row < items)[:, None], rows, 0)

    def own_rows(rows: Array) -> Array:
        return rows if shard_items else parallel.shard(rows, axis)

    def mean(total_and_count: tuple[Array, Array]) -> Array:
        total, rows = total_and_count
        return total / jnp.maximum(rows, 1)

    def look() -> Array:
        teacher = encoder.teacher
        return teacher(fixed.features, teacher.fold(fixed.moments), fixed.present)

    def keep(rows: Array) -> Array:
        return kept_rows(jax.lax.stop_gradient(rows))

    def learn() -> tuple[Array, Array]:
        rows = look()
        return mean(contrast(rows, tau=teacher_tau)), keep(rows)

    # A teacher that has stopped is looked at once more, and then remembered.
    teacher_loss, outputs = jax.lax.switch(
        jnp.clip(step - clock.teacher + 1, 0, 2),
        [
            learn,
            lambda: (jnp.zeros(()), keep(look())),
            lambda: (jnp.zeros(()), extra.outputs),
        ],
    )
    average = moving_average(extra.average, outputs, ema, step == 0)

    def pupil() -> tuple[Array, Array, tuple[Array, Array], Array]:
        """Student's and teacher's rows; those of the items on which they are compared, and which.

        Of many devices each has the rows of its items, and its share of those compared.
        """
        ids, kept = sub_batch(key, whole, user, weight, items=items, positives=positives)
        seen = own_rows(average)
        rows = encoder.student(seen)
        at = parallel.local_index(ids, own_items, axis)
        compared = parallel.gather_rows(rows, at, axis), parallel.gather_rows(seen, at, axis)
        return rows, seen, compared, kept

    def study() -> tuple[Array, Array]:
        rows, _, compared, kept = pupil()
        distilled, _ = similarity_loss(
            *compared, kept, alpha=alpha, omega=omega, compute=compute, axis=axis
        )
        return mean(contrast(rows, tau=tau)), distilled

    nothing = (jnp.zeros(()), jnp.zeros(()))
    contrastive, distilled = jax.lax.cond(step >= clock.student, study, lambda: nothing)

    def measure() -> dict[str, Array]:
        rows, seen, compared, kept = pupil()
        there = parallel.pad_rows(weight > 0, axis)
        bias = jnp.where(there, 0.0, semco.ABSENT)

        def scores(rows: Array, tau: float) -> Array:
            users = semco.user_vectors(rows, histories, None, axis)
            columns = parallel.gather(parallel.gather_rows(rows, positive, axis), axis)
            return semco.logits(users / (tau**2 if alpha > 1 else tau), columns, bias, compute)

        # One search over all four: it is compiled once.
        similar = [_similarities(x, kept, omega, compute, axis) for x in compared]
        first = scores(rows, tau)
        places = [(0, to - have) for have, to in zip(similar[0].shape, first.shape, strict=True)]
        similar = [jnp.pad(z, places, constant_values=semco.ABSENT) for z in similar]
        last = scores(own_rows(outputs), teacher_tau)
        found = entmax(jnp.stack([*similar, first, last]), alpha)
        found = found > 0
        columns = parallel.pad_rows(kept, axis)
        both = jnp.pad(parallel.shard(kept, axis)[:, None] & columns[None, :], places)
        support = jnp.sum(found[:2] & both[None], (1, 2)) / jnp.maximum(kept.sum(), 1) ** 2
        place = parallel.shard(jnp.arange(len(there)), axis)
        hit = jnp.take_along_axis(found[2:], place[None, :, None], 2)[..., 0]
        hit &= parallel.shard(there, axis)[None]
        known = hit.sum(1) / jnp.maximum((weight > 0).sum(), 1)
        # 1 - cosine of unit rows, written so that equal ones give 0. What devices log adds up.
        drift = jnp.sum((seen - own_rows(outputs)) ** 2) / (2 * items)
        return dict(zip(MEASURED, (*support, *known, drift), strict=True))

    unknown = dict.fromkeys(MEASURED, jnp.full((), jnp.nan))
    due = (step % LOG_EVERY == 0) & (step >= clock.student)
    measured = jax.lax.stop_gradient(jax.lax.cond(due, measure, lambda: unknown))
    logs = {
        "teacher": teacher_loss,
        "contrastive": contrastive,
        "distillation": distilled,
        **measured,
    }
    total = teacher_loss + lam * contrastive + distilled
    weight_here = count / parallel.size(axis)
    return total * count, (weight_here, Extra(step + 1, outputs, average), logs)


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    online: bool,
    alpha: float,
    tau: float,
    teacher_tau: float,
    lam: float,
    omega: float,
    positives: int,
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
    """SEMCo with distillation on a data set; the parameters are groups "teacher" and "student".

    The optimizer has to keep the clock of the loss too: `jaxcold.train.transforms.in_turn`.

    Args:
        dataset: see `semco.build`.
        batch_size: see `semco.build`; also the items of a distillation step.
        online: teacher and student together; else the student after the teacher.
        alpha: of all three losses, in [1, 2].
        tau: temperature of the student's contrastive loss.
        teacher_tau: temperature of the teacher's.
        lam: lambda, weight of the student's contrastive loss against the distillation.
        omega: temperature of the distillation.
        positives: items drawn per user for the distillation, see `sub_batch`.
        teacher_epochs: epochs in which the teacher learns.
        ema: momentum of the moving average that the student sees; 0 is the teacher itself.
        gradient: of the contrastive losses, see `semco.build`.
        hidden: width of the student's hidden layer.
        out: width of the student's embeddings, those that are served.
        teacher_hidden: width of each mode's first layer in the teacher.
        teacher_out: width of the teacher's embeddings.
        attention_layers: see `semco.build`.
        batch_norm: see `semco.build`.
        user_vector: see `semco.build`.
        compute: see `semco.build`.
        teachers: seed to the parameters of a trained teacher; it stays frozen, and there are no
            epochs for it.
        devices: see `semco.build`; with ``devices.shard_items`` none has the embeddings of all
            items either.

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
    if not lam >= 0:
        raise ValueError(f"model.lam is at least 0, not {lam}")
    if not 0 <= ema < 1:
        raise ValueError(f"model.ema is at least 0 and below 1, not {ema}")
    data = semco_data.prepare(
        dataset,
        batch_size=batch_size,
        batch_norm=batch_norm,
        compute=compute,
        devices=devices,
        whole=True,
    )
    clock = clock_of(online, 0 if teachers is not None else teacher_epochs * data.steps_per_epoch)
    shape = encoders.Shape(
        data.widths, teacher_hidden, teacher_out, attention_layers, (hidden, out), compute
    )
    graphdef, _ = shape.split()
    _, abstract = shape._replace(student=None).split()
    items = len(dataset.split.warm_items)

    def init(seed: int) -> tuple[nnx.State, Extra]:
        params = nnx.split(shape.make(jax.random.key(seed)))[1]
        if teachers is not None:
            known, wanted = (
                jax.tree.map(jnp.shape, nnx.to_pure_dict(t)) for t in (teachers[seed], abstract)
            )
            if known != wanted:
                raise ValueError(
                    "the teacher has other layers than this run expects; set model.teacher_hidden, "
                    "model.teacher_out and model.attention_layers to its own, on the same data"
                )
            params["teacher"] = jax.tree.map(jnp.array, teachers[seed])
        # Two buffers: a step gives both away.
        size = (devices.rows(items) if devices.shard_items else items), teacher_out
        rows = [jnp.zeros(size, device=devices.sharding(devices.shard_items)) for _ in range(2)]
        return params, Extra(jnp.zeros((), jnp.int32), *rows)

    def represent(params: nnx.State, extra: Extra, part: str = "test") -> Representations:
        del part  # the same users in every part
        # Until there is a student the teacher speaks for itself.
        if int(extra.step) <= clock.student and clock.student > 0:
            return data.represent(params["teacher"])
        return data.represent(params)

    loss = functools.partial(
        _loss,
        graphdef=graphdef,
        clock=clock,
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
    sizes = data.steps_per_epoch, data.examples_per_epoch
    split = semco_data.SPLIT._replace(state=ROWS if devices.shard_items else ())
    return Model(
        data.fixed, init, loss, represent, data.batches, *sizes, data.examples, devices, split
    )


def clock_of(online: bool, teacher_steps: int) -> Clock:
    """Online the student learns from the first step, offline after the teacher."""
    return Clock(teacher_steps, 0 if online else teacher_steps)
