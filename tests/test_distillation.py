"""Distillation against the papers' code, who learns when, and what is served."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_semco import ALPHAS, TOLERANCE, tiny

from jaxcold.estimators.semco import SEMCo
from jaxcold.models import distillation, encoders, item_similarity, pair_batches, semco
from jaxcold.models.layers import unit_rows
from jaxcold.models.transforms import warm_up
from jaxcold.train.loop import fit
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr

# Float64 references: Flax raises widths of its own.
pytestmark = pytest.mark.usefixtures("standard_promotion")

GOLDEN = pathlib.Path(__file__).parent / "golden"
PRECISIONS = {"f64": jnp.float64, "f32": jnp.float32}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    with jax.enable_x64(request.param == "f64"):
        yield request.param


@pytest.mark.parametrize("momentum", ["0", "0.5", "0.9"])
def test_moving_average_equals_the_reference(precision, momentum, golden):
    g = golden("semco/ema")
    new = jnp.asarray(g["X"], PRECISIONS[precision])
    state = jnp.zeros_like(new[0])
    for at in range(len(new)):
        state = item_similarity.moving_average(state, new[at], float(momentum), at == 0)
        want = g[f"mom{momentum}__{precision}"][at]
        np.testing.assert_allclose(state, want, atol=TOLERANCE[precision])


def entropy(p, alpha):
    """Mean entropy of rows: what the reference's loss has above ours."""
    p = np.asarray(p, np.float64)
    if alpha == 1:
        return -np.mean(np.sum(p * np.log(np.where(p > 0, p, 1)), -1))
    return np.mean((1 - np.sum(p**alpha, -1)) / (alpha * (alpha - 1)))


@pytest.mark.parametrize("omega", ["0.5", "2", "12"])
@pytest.mark.parametrize("fn", ALPHAS)
def test_similarity_loss_equals_the_reference(precision, fn, omega, golden):
    g = golden("semco/semco_loss")
    student, teacher = (
        jnp.asarray(g[f"{who}_feats"], PRECISIONS[precision]) for who in ("student", "teacher")
    )
    loss = functools.partial(
        item_similarity.similarity_loss,
        teacher=teacher,
        kept=jnp.ones(32, bool),
        alpha=ALPHAS[fn],
        omega=float(omega),
    )
    (value, target), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    name = f"distil__{fn}__omega{omega}__{precision}__"
    atol = TOLERANCE[precision]
    np.testing.assert_allclose(target, g[name + "e_y"], atol=atol)
    np.testing.assert_allclose(value + entropy(target, ALPHAS[fn]), g[name + "loss"], atol=atol)
    np.testing.assert_allclose(gradient, g[name + "grad_student"], atol=atol)


@pytest.mark.parametrize("omega", ["0.1", "0.2"])
def test_softmax_similarity_loss_equals_the_reference(omega, golden, x64):
    """The reference adds 1e-9 to each probability inside the logarithm; ours is exact."""
    g = golden("semco/semco_loss")
    student, teacher = (jnp.asarray(g[f"{who}_feats"]) for who in ("student", "teacher"))
    kept = jnp.ones(32, bool)
    alpha, name = 1.0, f"distil_softmax__omega{omega}__f64__"

    def ours(student):
        return item_similarity.similarity_loss(
            student, teacher, kept, alpha=alpha, omega=float(omega)
        )[0]

    def with_epsilon(student, epsilon):
        def p(rows):
            z = jnp.where(jnp.eye(32, dtype=bool), -1.0, rows @ rows.T)
            return jax.nn.softmax(z / float(omega), -1)

        return -jnp.mean(jnp.sum(p(teacher) * jnp.log(p(student) + epsilon), -1))

    reference = jax.grad(with_epsilon)(student, 1e-9)
    np.testing.assert_allclose(reference, g[name + "grad_student"], atol=1e-10)
    exact = jax.grad(with_epsilon)(student, 0.0)
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(student), exact, atol=1e-10)
    np.testing.assert_allclose(with_epsilon(student, 1e-9), g[name + "loss"], atol=1e-10)


def test_places_that_are_not_kept_change_nothing(x64):
    rng = np.random.default_rng(0)
    student, teacher = (unit_rows(jnp.asarray(rng.normal(size=(12, d)))) for d in (4, 6))
    kept = jnp.arange(12) < 9
    for alpha in (1.0, 1.5, 2.0):
        loss = jax.jit(functools.partial(item_similarity.similarity_loss, alpha=alpha, omega=0.5))
        value = jax.jit(jax.value_and_grad(lambda s, loss=loss: loss(s, teacher, kept)[0]))
        got, gradient = value(student)
        want = loss(student[:9], teacher[:9], kept[:9])[0]
        np.testing.assert_allclose(got, want, atol=1e-12)
        np.testing.assert_array_equal(gradient[9:], 0)


def test_similarity_loss_is_zero_for_a_student_like_its_teacher():
    rows = unit_rows(jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32))
    for alpha in (1.0, 1.5, 2.0):
        kept = jnp.ones(20, bool)
        measure = functools.partial(item_similarity.similarity_loss, alpha=alpha, omega=0.3)
        loss = jax.jit(measure)(rows, rows, kept)[0]
        np.testing.assert_allclose(loss, 0, atol=1e-6)


@pytest.mark.parametrize("fn", ALPHAS)
def test_student_equals_the_reference(precision, fn, golden):
    """Forward, and value and gradients of both losses and of their sum."""
    g, dtype = golden("semco/student"), PRECISIONS[precision]
    atol = TOLERANCE[precision]
    local = np.full(int(g["inter_shape"][1]), -1)
    local[g["warm_items"]] = np.arange(len(g["warm_items"]))
    history = Csr.from_pairs(g["inter_user"], local[g["inter_item"]], int(g["inter_shape"][0]))
    graphdef, params = nnx.split(encoders.Student(9, 8, 6, rngs=nnx.Rngs(0)))
    layers = {"first": "final_layer.0", "second": "final_layer.2"}
    weights = {
        ours: {
            "kernel": jnp.asarray(g[f"w__{theirs}.weight"], dtype).T,
            "bias": jnp.asarray(g[f"w__{theirs}.bias"], dtype),
        }
        for ours, theirs in layers.items()
    }
    nnx.replace_by_pure_dict(params, weights)
    teacher = jnp.asarray(g["teacher_items"], dtype)
    warm = teacher[g["warm_items"]]
    constants = pair_batches.Constants(
        (), None, (), jnp.asarray(history.indptr), jnp.asarray(history.indices)
    )
    user = jnp.asarray(g["batch_user"])
    positive = jnp.asarray(g["batch_item_warmpos"])
    weight = jnp.ones(16)
    ids = jnp.asarray(g["sub_batch_warmpos"])

    @jax.jit
    def rows(params, items):
        return nnx.merge(graphdef, params)(items)

    np.testing.assert_allclose(rows(params, warm), g[f"train__feats__{precision}"], atol=atol)
    everything = rows(params, teacher)
    np.testing.assert_allclose(everything, g[f"eval__item_emb__{precision}"], atol=atol)
    histories = pair_batches.gather_histories(constants, user, weight, jnp.arange(128))
    users = semco.user_vectors(rows(params, warm), histories, None)
    np.testing.assert_allclose(users, g[f"train__user_vecs__{precision}"], atol=atol)

    def distil(params):
        student = rows(params, warm)[ids]
        loss, target = item_similarity.similarity_loss(
            student,
            warm[ids],
            jnp.ones(len(ids), bool),
            alpha=ALPHAS[fn],
            omega=float(g["distil_scale"]),
        )
        p = jax.lax.stop_gradient(target)
        alpha = ALPHAS[fn]
        return loss + jnp.mean((1 - jnp.sum(p**alpha, -1)) / (alpha * (alpha - 1)))

    def sem(params):
        total, count = semco.contrast(
            rows(params, warm),
            histories,
            positive,
            weight,
            alpha=ALPHAS[fn],
            tau=float(g["student_sm_scale"]),
            gradient="autodiff",
            user_vector="mean",
        )
        return total / count

    def total(params):
        return float(g["cl_weight"]) * sem(params) + distil(params)

    for name, loss in {"distil": distil, "sem": sem, "total": total}.items():
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        key = f"{fn}__{name}__{precision}__"
        np.testing.assert_allclose(value, g[key + "loss"], atol=2 * atol)
        for ours, theirs in layers.items():
            got = gradient[ours]["kernel"][...], gradient[ours]["bias"][...]
            np.testing.assert_allclose(got[0].T, g[f"{key}grad__{theirs}.weight"], atol=2 * atol)
            np.testing.assert_allclose(got[1], g[f"{key}grad__{theirs}.bias"], atol=2 * atol)


# --- the sub-batch sampler


draw = jax.jit(
    lambda keys, constants, user, weight, items, positives: jax.vmap(
        lambda key: item_similarity.sub_batch(
            key, constants, user, weight, items=items, positives=positives
        )
    )(keys),
    static_argnums=(4, 5),
)


def drawn(histories, user, weight, *, positives, items, seeds=1):
    """Sub-batches [seeds, n] and which of their places are used."""
    constants = pair_batches.Constants(
        (), None, (), jnp.asarray(histories.indptr), jnp.asarray(histories.indices)
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    weight = jnp.asarray(weight, jnp.float32)
    ids, kept = draw(keys, constants, jnp.asarray(user), weight, items, positives)
    return np.asarray(ids), np.asarray(kept)


def test_a_sub_batch_is_full_distinct_and_of_the_batch_users():
    rng = np.random.default_rng(0)
    items, users = 400, 30
    pairs = [(u, i) for u in range(users) for i in rng.choice(items, 40, replace=False)]
    histories = Csr.from_pairs(*np.array(pairs).T, users)
    user = rng.integers(0, 20, 64)  # users 20.. are not in the batch
    weight = np.ones(64)
    weight[user == 3] = 0
    ids, kept = drawn(histories, user, weight, positives=5, items=items, seeds=2)
    assert kept.all()
    inside = set(histories.take(np.unique(user[weight > 0])).indices)
    for row in ids:
        assert len(set(row)) == len(row) == 64
        assert set(row) <= inside
    assert set(ids[0]) != set(ids[1])


def test_every_owned_item_can_be_drawn_and_none_is_favoured():
    """Two users of 8 items each; a sub-batch of 8 of the 16: each item in half of them."""
    histories = Csr.from_pairs(np.repeat([0, 1], 8), np.arange(16), 2)
    user = np.array([0, 1] * 4)
    ids, kept = drawn(histories, user, np.ones(8), positives=4, items=16, seeds=200)
    assert kept.all()
    count = np.bincount(ids.ravel(), minlength=16)
    assert abs(count - 100).max() < 40  # 5.6 standard deviations


def test_a_batch_of_few_users_gives_one_round():
    histories = Csr.from_pairs(np.repeat([0, 1, 2], 100), np.arange(300), 3)
    user = np.array([0, 1] * 32)  # a round takes 64 // 5 = 12 users
    ids, kept = drawn(histories, user, np.ones(64), positives=5, items=300)
    got = ids[0][kept[0]]
    for who in (0, 1):
        assert 1 <= np.sum(got // 100 == who) <= 5
    assert not np.any(got // 100 == 2)


def test_drawing_ends_where_the_users_own_fewer_items_than_a_batch():
    histories = Csr.from_pairs(np.arange(32), np.arange(32) % 7, 32)
    user = np.arange(32)
    ids, kept = drawn(histories, user, np.ones(32), positives=2, items=20)
    assert set(ids[0][kept[0]]) == set(range(7))


# --- training

SMALL = {
    "alpha": 2.0,
    "tau": 2.5,
    "teacher_tau": 2.5,
    "lam": 1.0,
    "omega": 2.0,
    "positives": 3,
    "teacher_epochs": 2,
    "gradient": "autodiff",
    "hidden": 5,
    "out": 3,
    "teacher_hidden": 8,
    "teacher_out": 6,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "l2": 1e-4,
    "warmup_epochs": 1,
}


def fixture(name):
    """The `golden` fixture's, for fixtures that live longer than a test."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def train(dataset, *, online, epochs, seed=0, each=lambda state: None, **options):
    model = distillation.build(dataset, online=online, epochs=epochs, **SMALL | options)
    state = init_state(model, seed)
    each(state)
    metrics = []
    state = fit(
        model,
        make_step(model),
        state,
        seed=seed,
        on_step=lambda _, of_step: metrics.append(of_step),
        on_epoch=lambda _, state: each(state),
    )
    return model, state, metrics


def groups(state):
    return {
        name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params[name])])
        for name in ("teacher", "student")
    }


@pytest.fixture(scope="module")
def offline():
    """Two epochs of the teacher, two of the student: final state, logs, groups after each epoch."""
    seen = []
    _, state, logs = train(
        tiny(fixture), online=False, epochs=2, each=lambda state: seen.append(groups(state))
    )
    return state, logs, seen


def test_offline_the_student_learns_after_the_teacher_and_from_it(offline):
    state, logs, (start, _, taught, _, end) = offline
    np.testing.assert_array_equal(start["student"], taught["student"])
    np.testing.assert_array_equal(taught["teacher"], end["teacher"])
    assert np.abs(start["teacher"] - taught["teacher"]).max() > 1e-3
    assert np.abs(taught["student"] - end["student"]).max() > 1e-3
    half = len(logs) // 2
    assert all(found["contrastive"] == found["distillation"] == 0 for found in logs[:half])
    assert all(found["loss/teacher"] == found["loss"] > 0 for found in logs[:half])
    assert all(found["loss/teacher"] == 0 for found in logs[half:])
    assert np.mean([f["distillation"] for f in logs[-5:]]) < logs[half]["distillation"]
    # The student studies the teacher as it ended, not as it was a step before.
    np.testing.assert_allclose(state.model_state.average, state.model_state.outputs, atol=1e-6)
    drift = [found["ema_drift"] for found in logs if np.isfinite(found["ema_drift"])]
    assert drift
    assert all(0 <= found < 1e-10 for found in drift)


@pytest.fixture(scope="module")
def online():
    """Four epochs online, the teacher's two: model, final state, logs, groups after each epoch."""
    seen = []
    model, state, logs = train(
        tiny(fixture), online=True, epochs=4, ema=0.5, each=lambda state: seen.append(groups(state))
    )
    return model, state, logs, seen


def test_online_both_learn_until_the_teacher_stops(online):
    _, state, logs, (_, one, taught, _, end) = online
    assert np.abs(one["student"] - taught["student"]).max() > 1e-3
    np.testing.assert_array_equal(taught["teacher"], end["teacher"])
    assert np.abs(taught["student"] - end["student"]).max() > 1e-3
    measured = [found for found in logs if np.isfinite(found["ema_drift"])]
    assert len(measured) == -(-len(logs) // distillation.MEASURE_EVERY)
    for name in distillation.MEASURED[:-1]:
        assert all(0 < found[name] <= 1 for found in measured), name
    # The average catches up once its teacher has stopped.
    np.testing.assert_allclose(state.model_state.average, state.model_state.outputs, atol=1e-3)


def test_one_seed_repeats_to_the_last_bit(online):
    again = train(tiny(fixture), online=True, epochs=4, ema=0.5)[1]
    jax.tree.map(np.testing.assert_array_equal, online[1].params, again.params)


def test_a_student_is_served_like_the_base_model(online, tmp_path):
    """Raw content in, the student's width out, alone as in the catalogue, saved and loaded."""
    model, state, _, _ = online
    dataset = tiny(fixture)
    served = SEMCo.from_training(dataset, model, state.params, state.model_state, {})
    served.save(tmp_path / "m")
    loaded = SEMCo.load(tmp_path / "m")
    want = model.encode_items(state.params, state.model_state)
    np.testing.assert_array_equal(loaded.item, want)
    tables = dataset.content.tables
    alone = loaded.embed({mode: table[7:8] for mode, table in tables.items()})
    np.testing.assert_array_equal(alone, want[7:8])
    assert alone.shape == (1, 3)


def test_a_late_student_starts_like_a_fresh_one():
    """Adam's moments and its step count wait too, or the first steps would be too long."""
    rate = 0.1
    optimizers = distillation.optimizers(
        distillation.Schedule(teacher_stops=3, student_starts=3),
        learning_rate=rate,
        l2=0.0,
        warmup_steps=0,
    )
    assert list(optimizers) == ["teacher", "student"]
    gradients = {"teacher": jnp.ones(2), "student": jnp.full(2, 0.3)}
    updates, states = {}, {}
    for group, optimizer in optimizers.items():
        params, state = jnp.ones(2), optimizer.init(jnp.ones(2))
        updates[group], states[group] = [], [state]
        for _ in range(5):
            update, state = optimizer.update(gradients[group], state, params)
            updates[group].append(update)
            states[group].append(state)
    # The teacher's rate falls by a cosine to 0 at the step where it stops.
    rates = [rate * 0.5 * (1 + np.cos(np.pi * at / 3)) for at in range(3)]
    teacher = np.array(updates["teacher"])
    np.testing.assert_allclose(teacher, -np.array([*rates, 0, 0])[:, None] * [1, 1], rtol=1e-4)
    # Adam's first steps have the length of the rate.
    student = np.array(updates["student"])
    np.testing.assert_array_equal(student[:3], 0)
    np.testing.assert_allclose(student[3:], -rate, rtol=1e-4)

    def moments(state):
        return [np.asarray(x) for x in jax.tree.leaves(state) if np.ndim(x)]

    for group, still in (("teacher", slice(3, 6)), ("student", slice(0, 4))):
        first, *others = (moments(state) for state in states[group][still])
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, other, first)


def test_only_the_teacher_decays_and_only_the_student_warms_up():
    optimizers = distillation.optimizers(
        distillation.Schedule(teacher_stops=9, student_starts=0),
        learning_rate=0.1,
        l2=0.5,
        warmup_steps=4,
    )
    params, nothing = jnp.array([1.0, -1.0]), jnp.zeros(2)
    teacher, student = (
        optimizer.update(nothing, optimizer.init(params), params)[0]
        for optimizer in optimizers.values()
    )
    np.testing.assert_allclose(teacher, [-0.1, 0.1], rtol=1e-4)  # the gradient is the decay's
    np.testing.assert_array_equal(student, 0)
    optimizer, state = optimizers["student"], optimizers["student"].init(params)
    lengths = []
    for _ in range(6):
        update, state = optimizer.update(jnp.ones(2), state, params)
        lengths.append(-float(update[0]))
    np.testing.assert_allclose(lengths, [0, 0.025, 0.05, 0.075, 0.1, 0.1], atol=1e-6)


def test_warm_up_rises_from_zero_and_stays():
    rates = [float(warm_up(0.2, 4)(jnp.asarray(step))) for step in range(7)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2], atol=1e-7)
    assert float(warm_up(0.2, 0)(jnp.asarray(0))) == pytest.approx(0.2)


def test_a_given_teacher_is_kept(offline, golden):
    dataset, teacher = tiny(golden), offline[0].params["teacher"]
    model, state, _ = train(dataset, online=False, epochs=1, teachers={0: teacher})
    jax.tree.map(np.testing.assert_array_equal, state.params["teacher"], teacher)
    data = pair_batches.prepare(dataset, batch_size=16)
    rows = data.encode_items(teacher, None)[dataset.split.warm_items]
    np.testing.assert_allclose(state.model_state.outputs, rows, atol=1e-6)
    assert model.encode_items(state.params, state.model_state).shape == (40, 3)
    wider = SMALL | {"teacher_hidden": 9, "teachers": {0: teacher}}
    with pytest.raises(ValueError, match="teacher_hidden"):
        distillation.build(dataset, online=False, epochs=1, **wider).init(0)


def test_an_item_without_content_has_a_zero_row():
    graphdef, params = nnx.split(encoders.Student(4, 3, 2, rngs=nnx.Rngs(0)))
    rows = jax.jit(lambda x: nnx.merge(graphdef, params)(x))(
        jnp.eye(4)[:2] * jnp.asarray([[0.0], [1]])
    )
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=-1), [0, 1], atol=1e-6)
    zero = jax.jit(jax.grad(lambda x: nnx.merge(graphdef, params)(x).sum()))(jnp.zeros((1, 4)))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"omega": 0.0}, "omega"),
        ({"teacher_tau": -1.0}, "teacher_tau"),
        ({"lam": -1.0}, "lam"),
        ({"ema": 1.0}, "ema"),
        ({"positives": 0}, "positives"),
        ({"teacher_out": 0}, "teacher_out"),
        ({"alpha": 3.0}, "alpha"),
        ({"gradient": "none"}, "gradient"),
        ({"user_vector": "none"}, "user_vector"),
        ({"epochs": 0}, "train.epochs is at least 1"),
        ({"teacher_epochs": 0}, "model.teacher_epochs is at least 1"),
        ({"warmup_epochs": -1}, "model.warmup_epochs is at least 0"),
    ],
)
def test_bad_options_are_named(change, message, golden):
    with pytest.raises(ValueError, match=message):
        distillation.build(tiny(golden), **{"online": True, "epochs": 1, **SMALL, **change})
