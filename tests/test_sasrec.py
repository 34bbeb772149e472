"""SASRec: parity with the published code, independence of the batch, losses, the item tables."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxcold.data.content import fit_reduction, unit_rows
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.data.sequences.split import windows
from jaxcold.eval.metrics import evaluate
from jaxcold.eval.ranking import top_k
from jaxcold.models import sasrec
from jaxcold.models.negatives import Objective, sampled_loss
from jaxcold.models.sequence_encoder import SASRec
from jaxcold.models.transforms import clip_row_norm
from jaxcold.sparse import linear_entmax_sum
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, DataError, Representations

# Float64 references: Flax raises widths of its own.
pytestmark = pytest.mark.usefixtures("standard_promotion")

NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "attn.out_proj": "out",
    "ffn.layers.0": "first",
    "ffn.layers.3": "second",
}


def csr(rows):
    return Csr.from_pairs(
        np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        np.array([item for row in rows for item in row], int),
        len(rows),
    )


def ours(name, array):
    """A published parameter as ours: [(path, array), ...]; a linear layer's weight is turned."""
    if name == "item_embedding_row0_without_hook":
        return []
    if name in ("item_embedding.weight", "delta_embedding.weight"):
        return [((name.split("_")[0].replace("item", "items"),), array)]
    if name == "pos_embedding.weight":
        return [(("position",), array)]
    if name.startswith("layer_norm."):
        return [(("norm", "scale" if name.endswith("weight") else "bias"), array)]
    _, number, rest = name.split(".", 2)
    at = ("blocks", int(number))
    layer, _, kind = rest.rpartition(".")
    if "in_proj" in rest:
        kind = "kernel" if rest.endswith("weight") else "bias"
        parts = zip(("query", "key", "value"), np.split(array, 3), strict=True)
        return [((*at, part, kind), piece.T) for part, piece in parts]
    if "norm" in layer:
        return [((*at, NAMES[layer], "scale" if kind == "weight" else "bias"), array)]
    return [((*at, NAMES[layer], "kernel" if kind == "weight" else "bias"), array.T)]


def tree(arrays, prefix, dtype=np.float64):
    """The published parameters under a prefix, by our paths."""
    return {
        path: np.asarray(value, dtype)
        for name, array in arrays.items()
        if name.startswith(prefix)
        for path, value in ours(name[len(prefix) :], array)
    }


def by_path(state):
    def part(key):
        return getattr(key, "key", getattr(key, "idx", None))

    return {
        tuple(part(k) for k in path if part(k) is not None): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def with_values(state, values):
    """The state with its leaves replaced by path."""

    def part(key):
        return getattr(key, "key", getattr(key, "idx", None))

    def leaf(path, _):
        return jnp.asarray(values[tuple(part(k) for k in path if part(k) is not None)])

    return jax.tree_util.tree_map_with_path(leaf, state)


def small(item_table):
    model = SASRec(
        20, 8, 10, item_table=item_table, blocks=2, heads=1, dropout=0.0, rngs=nnx.Rngs(params=0)
    )
    return nnx.split(model)


def tokens_of(arrays):
    """The published batch: left-padded, every slot a token."""
    inputs, labels = arrays["inputs"], arrays["labels"]
    rows, length = inputs.shape
    every = np.arange(inputs.size, dtype=np.int32)
    tokens = packing.Tokens(
        inputs.reshape(-1).astype(np.int32),
        np.tile(np.arange(length, dtype=np.int32), rows),
        np.where(labels < 0, 0, labels).reshape(-1).astype(np.int32),
        (every.reshape(rows, length),),
        every,
    )
    return jax.tree.map(jnp.asarray, tokens)


@pytest.mark.parametrize("tag", ["ref", "fix"])
@pytest.mark.parametrize("kind", ["items", "delta"])
def test_golden_logits_loss_gradients(tag, kind, golden, x64):
    arrays = golden("letitgo/sasrec" if kind == "items" else "letitgo/sasrec_delta")
    weights = tree(arrays, "w.")
    content = None
    if kind == "delta":
        weights[("delta",)] = arrays["delta"].astype(np.float64)
        content = jnp.asarray(arrays["content"], jnp.float64)
    graphdef, state = small("random" if kind == "items" else "delta")
    state = with_values(state, weights)
    tokens = tokens_of(arrays)
    model = nnx.merge(graphdef, state)
    table = model.table(content)
    hidden = model(table, tokens, additive=tag == "ref")
    real = arrays["inputs"].reshape(-1) > 0
    # With the right mask what stands at padding is arbitrary, and nobody reads it.
    kept = slice(None) if tag == "ref" else real
    logits = (hidden @ table.T).reshape(-1, 21)
    expected = arrays[f"logits_{tag}_f64"].reshape(-1, 21)
    np.testing.assert_allclose(logits[kept], expected[kept], atol=1e-12)

    constants = sasrec.Constants(content)
    loss = full_loss(graphdef)

    def mean(state, reference):
        total, (count, _, _) = loss(
            {"main": state}, (), constants, tokens, jax.random.key(0), reference=reference
        )
        return total / count

    if tag == "ref":
        value, gradients = jax.value_and_grad(mean)(state, True)
        np.testing.assert_allclose(value, arrays["loss_ref_f64"], rtol=1e-12)
    else:
        # The fixture keeps padding as a class: our loss with the right mask and all 21 columns.
        def with_padding_class(state):
            model = nnx.merge(graphdef, state)
            table = model.table(content)
            table = jnp.concatenate([jax.lax.stop_gradient(table[:1]), table[1:]])
            target = jnp.where(tokens.target > 0, tokens.target, -1)
            hidden = model(table, tokens)
            return linear_entmax_sum(hidden, table, target, 1.0) / jnp.sum(target > 0)

        value, gradients = jax.value_and_grad(with_padding_class)(state)
        np.testing.assert_allclose(value, arrays["loss_fix_f64"], rtol=1e-12)
    found = by_path(gradients)
    wanted = tree(arrays, f"g_{tag}.")
    assert found.keys() >= {path for path in wanted if path in found}
    for path, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[path], atol=1e-12, err_msg=str(path))


def test_golden_row_zero_drifts_with_trainable_content(golden, x64):
    arrays = golden("letitgo/sasrec")
    graphdef, state = small("content")
    state = with_values(state, tree(arrays, "w."))
    content = jnp.asarray(arrays["w.item_embedding.weight"], jnp.float64)

    def total(state):
        value, (count, _, _) = full_loss(graphdef, reference=True)(
            {"main": state}, (), sasrec.Constants(content), tokens_of(arrays), jax.random.key(0)
        )
        return value / count

    found = by_path(jax.grad(total)(state))[("items",)]
    np.testing.assert_allclose(
        found[0], arrays["g_ref.item_embedding_row0_without_hook"], atol=1e-12
    )


def full_loss(graphdef, **options):
    objective = Objective("full", 1.0, 1.0, 1, 1.0)
    return functools.partial(sasrec._loss, graphdef=graphdef, objective=objective, **options)


def test_golden_training_of_five_steps(golden, x64):
    arrays = golden("letitgo/sasrec_delta")
    graphdef, state = small("delta")
    state = with_values(state, tree(arrays, "w.") | {("delta",): arrays["delta"].astype(float)})
    constants = sasrec.Constants(jnp.asarray(arrays["content"], jnp.float64))
    optimizer = sasrec.optimizer(float(arrays["train5_lr"]), float(arrays["max_norm"]))
    loss = full_loss(graphdef, reference=True)
    opt_state, tokens = optimizer.init(state), tokens_of(arrays)

    @jax.jit
    def step(state, opt_state):
        def mean(state):
            total, (count, _, _) = loss({"main": state}, (), constants, tokens, jax.random.key(0))
            return total / count

        value, gradients = jax.value_and_grad(mean)(state)
        updates, opt_state = optimizer.update(gradients, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, value

    for number in range(5):
        state, opt_state, value = step(state, opt_state)
        np.testing.assert_allclose(value, arrays["train5_loss_ref"][number], rtol=1e-9)
        delta = by_path(state)[("delta",)]
        np.testing.assert_allclose(delta, arrays["train5_delta_ref"][number], atol=1e-9)
    wanted = tree(arrays, "train5_final_ref.")
    for path, value in by_path(state).items():
        np.testing.assert_allclose(value, wanted[path], atol=1e-8, err_msg=str(path))


@pytest.mark.parametrize("bound", [0.1, 0.5])
@pytest.mark.parametrize("rate", [0.001, 0.05, 0.2])
def test_golden_bounded_adam(bound, rate, golden, x64):
    arrays = golden("letitgo/constrained_adam")
    optimizer = optax.chain(
        optax.adam(rate, eps=float(arrays["eps"])), clip_row_norm(bound, first=1)
    )
    table = jnp.asarray(arrays["init"])
    state = optimizer.init(table)
    for number, gradient in enumerate(arrays["grads"]):
        updates, state = optimizer.update(jnp.asarray(gradient), state, table)
        table = table + updates
        np.testing.assert_allclose(table, arrays[f"table_mn{bound}_lr{rate}"][number], atol=1e-12)


def test_golden_padding_row_moves_unclipped(golden, x64):
    arrays = golden("letitgo/constrained_adam")
    optimizer = optax.chain(optax.adam(0.05), clip_row_norm(0.1, first=1))
    table = jnp.asarray(arrays["row0demo_init"])
    state = optimizer.init(table)
    for number, gradient in enumerate(arrays["row0demo_grads"]):
        updates, state = optimizer.update(jnp.asarray(gradient), state, table)
        table = table + updates
        wanted = arrays["row0demo_table_mn0.1_lr0.05"][number]
        np.testing.assert_allclose(table, wanted, atol=1e-12)
    assert np.linalg.norm(table[0]) > 0.1


def test_clip_row_norm_refuses_nonsense():
    with pytest.raises(ValueError, match="max_norm is at least 0, not -1"):
        clip_row_norm(-1)
    with pytest.raises(ValueError, match="needs the parameters"):
        clip_row_norm(1).update(jnp.ones((2, 2)), optax.EmptyState())


def test_golden_reduction(golden):
    arrays = golden("letitgo/content_prep")
    fitted = fit_reduction(arrays["warm_raw"], 5)
    sign = np.sign(np.sum(fitted.components * arrays["components"], axis=1))
    np.testing.assert_allclose(fitted.components * sign[:, None], arrays["components"], atol=1e-9)
    np.testing.assert_allclose(fitted(arrays["warm_raw"]) * sign, arrays["warm_out"], atol=1e-6)
    np.testing.assert_allclose(fitted(arrays["cold_raw"]) * sign, arrays["cold_out"], atol=1e-6)


def test_golden_metrics(golden):
    arrays = golden("letitgo/metrics")
    warm, cold = int(arrays["num_warm"]), int(arrays["num_cold"])
    rows = [[item - 1 for item in row if item > 0] for row in arrays["history"]]
    target = (arrays["ground_truth"] - 1).astype(np.int32)
    dataset = SequenceDataset(
        name="golden",
        num_warm=warm,
        num_items=warm + cold,
        train=csr([[0, 1]]),
        val=EvalSequences(np.zeros(1, np.int32), csr([[0]]), np.array([1], np.int32)),
        test=EvalSequences(np.arange(12, dtype=np.int32), csr(rows), target),
        content=None,
        user_ids=np.arange(12),
        item_ids=np.arange(warm + cold),
        statistics={},
    )
    # Scores as vectors: the padding column is the item after the last.
    vectors = {
        dropped: Representations(np.roll(scores, -1, axis=1), np.eye(warm + cold + 1))
        for dropped, scores in ((0, arrays["scores_full"]), (1, arrays["scores_filtered"]))
    }
    slices = evaluation.slices(dataset, padding_item=True)
    modes = zip(arrays["modes_recommend_cold"], arrays["modes_filter_cold"], strict=True)
    names = {switches: name for name, switches in evaluation.MODES.items()}
    targets = {"total": slice(None), "warm": ~arrays["is_cold"], "cold": arrays["is_cold"]}
    for recommended, dropped in modes:
        suffix = f"rec{int(recommended)}_fil{int(dropped)}"
        for name, rows in targets.items():
            eval_slice = slices[f"test/{names[bool(recommended), bool(dropped)]}/{name}"]
            lists = top_k(vectors[int(dropped)], eval_slice, 10)
            values = evaluate(lists, eval_slice, [10]).per_user
            np.testing.assert_allclose(values["hr@10"], arrays[f"hits_{suffix}"][rows])
            np.testing.assert_allclose(values["ndcg@10"], arrays[f"ndcg_{suffix}"][rows])


# A world with a known answer: item i is followed by i + 1, around a circle.
def circle(users=60, warm=24, cold=4, seed=0):
    rng = np.random.default_rng(seed)
    angle = np.arange(warm + cold) / (warm + cold) * 2 * np.pi
    angle = angle[:, None] * np.arange(1, 5)
    content = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    place = rng.permutation(warm + cold)  # position on the circle -> item
    start = rng.integers(0, warm + cold, 3 * users)
    walks = [[place[(s + i) % (warm + cold)] for i in range(rng.integers(3, 12))] for s in start]
    content = content[np.argsort(place)]
    train = [[i for i in walk if i < warm] for walk in walks[:users]]
    train = [walk for walk in train if len(walk) > 1]
    warm_walks = [[i for i in walk if i < warm] for walk in walks[users : 2 * users]]
    warm_walks = [walk for walk in warm_walks if len(walk) > 1]
    test = walks[2 * users :]

    def sequences(walks):
        return EvalSequences(
            np.arange(len(walks), dtype=np.int32),
            csr([walk[:-1] for walk in walks]),
            np.array([walk[-1] for walk in walks], np.int32),
        )

    return SequenceDataset(
        name="circle",
        num_warm=warm,
        num_items=warm + cold,
        train=csr(train),
        val=sequences(warm_walks),
        test=sequences(test),
        content=content.astype(np.float32),
        user_ids=np.arange(3 * users),
        item_ids=np.arange(warm + cold),
        statistics={},
    )


def options(**changes):
    own = {"batch_size": 16, "epochs": 2, "learning_rate": 1e-2, "dim": 8, "max_length": 6}
    return {**own, "blocks": 1, "dropout": 0.0, **changes}


def encoded(model, state, histories):
    """The vectors of the users with these histories, and of all items."""
    items = model.encode_items(state.params, state.model_state)
    users = model.encode_users(state.params, state.model_state, items, histories)
    return Representations(users, items)


def trained(dataset, epochs=2, **changes):
    model = sasrec.build(dataset, **options(**changes))
    step, state = make_step(model), init_state(model, 0)
    key, losses = jax.random.key(0), []
    for epoch in range(epochs):
        for tokens in model.batches(np.random.default_rng(epoch)):
            state, metrics = step(state, model.constants, tokens, key)
            losses.append(float(metrics["loss"]))
    return model, state, losses


@pytest.mark.parametrize("item_table", ["random", "content", "frozen", "delta"])
def test_every_item_table_learns(item_table):
    dataset = circle()
    model, state, losses = trained(dataset, 12, item_table=item_table)
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    vectors = encoded(model, state, dataset.test.history)
    assert np.isfinite(vectors.user).all()
    # Row 0 is nobody's.
    for path, rows in by_path(state.params["main"]).items():
        if path in (("items",), ("delta",)):
            np.testing.assert_array_equal(rows[0], 0)


def test_cold_items_are_recommended_from_content_alone():
    dataset = circle(users=200)
    model, state, _ = trained(dataset, 10, item_table="delta")
    eval_slice = evaluation.slices(dataset)["test/open/cold"]
    lists = top_k(encoded(model, state, eval_slice.histories), eval_slice, 5)
    # At random: 5 of some 25 candidates.
    assert evaluate(lists, eval_slice, [5]).mean()["hr@5"] > 0.8


def test_delta_rows_stay_in_the_ball_and_cold_items_have_none():
    dataset = circle()
    model, state, _ = trained(dataset, 6, item_table="delta", max_delta_norm=0.05)
    delta = by_path(state.params["main"])[("delta",)]
    assert np.linalg.norm(delta, axis=1).max() <= 0.05 * (1 + 1e-6)
    assert np.linalg.norm(delta, axis=1).max() > 0.04
    vectors = model.encode_items(state.params, state.model_state)
    content, _ = sasrec.contents(dataset, 8, "always")
    np.testing.assert_array_equal(vectors[dataset.num_warm :], content[dataset.num_warm :])


def test_a_bound_of_zero_is_frozen_content():
    model, state, _ = trained(circle(), 2, item_table="delta", max_delta_norm=0.0)
    _, other, _ = trained(circle(), 2, item_table="frozen")
    np.testing.assert_array_equal(by_path(state.params["main"])[("delta",)], 0)
    ours, theirs = by_path(state.params["main"]), by_path(other.params["main"])
    for path, rows in theirs.items():
        assert ours[path].shape == rows.shape
    np.testing.assert_array_equal(
        model.encode_items(state.params, ())[:24], model.constants.content[1:]
    )


def test_a_user_alone_scores_as_in_any_company():
    dataset = circle()
    model, state, _ = trained(dataset, 2)
    users = encoded(model, state, dataset.val.history).user
    for number in (0, 3, 7):
        alone = encoded(model, state, dataset.val.history.take(np.array([number]))).user
        np.testing.assert_allclose(alone[0], users[number], atol=2e-6)


def test_the_reference_depends_on_the_company():
    dataset = circle()
    model, state, _ = trained(dataset, 2, reference=True)
    users = encoded(model, state, dataset.val.history).user
    short = int(np.argmin(dataset.val.history.counts))
    alone = encoded(model, state, dataset.val.history.take(np.array([short])))
    assert np.abs(alone.user[0] - users[short]).max() > 1e-3
    assert len(alone.item) == dataset.num_items + 1  # padding is a candidate


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_packed_batches_give_the_loss_of_padded_ones(alpha, x64):
    dataset = circle()
    model = sasrec.build(dataset, **options(alpha=alpha))
    params, model_state = model.init(0)
    loss = model.losses["main"]
    rows = windows(dataset.train, 6, "last").take(np.arange(16))
    inputs, targets = packing.inputs_and_targets(rows)
    packed = packing.pack(inputs, targets, packing.capacity_for(inputs.counts, 16))
    padded = packing.pad_left_or_right(inputs, targets, 20, 6, left=False)
    key = jax.random.key(0)
    results = []
    for tokens in (packed, padded):
        tokens = jax.tree.map(jnp.asarray, tokens)

        def total(params, tokens=tokens):
            return loss(params, model_state, model.constants, tokens, key)[0]

        results.append(jax.value_and_grad(total)(params))
        count = loss(params, model_state, model.constants, tokens, key)[1][0]
        assert count == len(targets)
    (value, gradient), (other, other_gradient) = results
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_lengths_that_no_sequence_has_get_no_capacity():
    assert packing.capacity_for(np.array([6, 6]), 4).lengths == (6,)
    assert packing.capacity_for(np.array([1, 30]), 4).lengths == (4, 30)
    dataset = circle()
    walks = csr([list(range(i, i + 7)) for i in range(16)])
    model = sasrec.build(replace(dataset, train=walks), **options())
    params, model_state = model.init(0)
    tokens = jax.tree.map(jnp.asarray, next(iter(model.batches(np.random.default_rng(0)))))
    loss = model.losses["main"]
    total = loss(params, model_state, model.constants, tokens, jax.random.key(0))[0]
    assert np.isfinite(total)


def test_batches_larger_than_their_capacity_are_whole():
    rows = csr([list(range(n)) for n in (2, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9)])
    capacity = packing.Capacity(16, (4, 8), (8, 8))
    tokens = packing.pack(*packing.inputs_and_targets(rows), capacity)
    assert np.count_nonzero(tokens.item) == np.count_nonzero(tokens.target) == 3 + 9 * 8
    slots = np.concatenate([index.reshape(-1) for index in tokens.buckets])
    real = tokens.slot[tokens.item > 0]
    np.testing.assert_array_equal(slots[real], np.flatnonzero(tokens.item))


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
def test_sampled_losses_learn(loss):
    dataset = circle()
    model, state, _ = trained(dataset, 10, loss=loss, negatives=8)
    eval_slice = evaluation.slices(dataset)["test/open/warm"]
    lists = top_k(encoded(model, state, eval_slice.histories), eval_slice, 5)
    assert evaluate(lists, eval_slice, [5]).mean()["hr@5"] > 0.8


def test_sampled_softmax_of_many_draws_is_the_full_loss(x64):
    rng = np.random.default_rng(0)
    hidden, classes = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    target = np.array([3, 0, -1, 8, 4])
    full = linear_entmax_sum(hidden, classes, target, 1.0)
    # The mean over many draws of the corrected normaliser tends to the true one.
    drawn = rng.integers(0, len(classes), 200_000)
    found = sampled_loss(
        jnp.asarray(hidden),
        jnp.asarray(classes[np.maximum(target, 0)]),
        jnp.asarray(classes[drawn]),
        jnp.asarray(drawn),
        jnp.asarray(target),
        len(classes),
        Objective("sampled", 1.0, 1.0, len(drawn), 1.0),
    )
    np.testing.assert_allclose(found, full, rtol=2e-2)


@pytest.mark.parametrize("changes", [{}, {"loss": "sampled"}, {"loss": "gbce"}])
def test_weights_belong_to_the_targets_and_multiply_their_losses(changes):
    dataset = circle()
    # An item's weight is its number from 1, so that tokens show whose weight they have.
    weights = (dataset.train.indices + 1).astype(np.float32)
    model = sasrec.build(replace(dataset, weights=weights), **options(dropout=0.0, **changes))
    tokens = jax.tree.map(jnp.asarray, next(iter(model.batches(np.random.default_rng(0)))))
    np.testing.assert_allclose(tokens.weight * weights.mean(), tokens.target, rtol=1e-5)
    params, model_state = model.init(0)

    def loss(weight):
        total, (count, *_) = model.losses["main"](
            params, model_state, model.constants, tokens._replace(weight=weight), jax.random.key(0)
        )
        return float(total), float(count)

    ones = jnp.where(tokens.target > 0, 1.0, 0.0)
    assert loss(ones)[1] == loss(None)[1]
    np.testing.assert_allclose(loss(ones)[0], loss(None)[0], rtol=1e-5)
    half = ones * (jnp.arange(len(ones)) % 2)
    np.testing.assert_allclose(
        np.add(loss(2 * half), loss(ones - half)), np.add(loss(half), loss(ones)), rtol=1e-5
    )
    assert 0 < loss(half)[0] < loss(ones)[0]


def test_dropout_acts_in_training_only():
    dataset = circle()
    model = sasrec.build(dataset, **options(dropout=0.5))
    params, model_state = model.init(0)
    tokens = next(iter(model.batches(np.random.default_rng(0))))
    tokens = jax.tree.map(jnp.asarray, tokens)
    loss = model.losses["main"]
    one, other = (
        float(loss(params, model_state, model.constants, tokens, jax.random.key(k))[0])
        for k in (0, 1)
    )
    assert one != other
    items = model.encode_items(params, model_state)
    first, second = (
        model.encode_users(params, model_state, items, dataset.val.history) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_delta_norm": 1.0}, "model.max_delta_norm is at least 0 and below 1, not 1.0"),
        ({"max_delta_norm": -0.1}, "model.max_delta_norm is at least 0"),
        ({"item_table": "learned"}, "model.item_table is 'random' or 'content'"),
        ({"loss": "bpr"}, "model.loss is 'full' or 'sampled' or 'gbce'"),
        ({"heads": 3}, "model.heads is a divisor of dim=8, not 3"),
        ({"alpha": 2.5}, "model.alpha is between 1 and 2"),
        ({"dropout": 1.0}, "model.dropout is at least 0 and below 1"),
        ({"average": 1.0}, "model.average is at least 0 and below 1, not 1.0"),
        ({"layers": "gpt"}, "model.layers is 'sasrec' or 'ligr', not 'gpt'"),
        ({"reduce": "pca"}, "model.reduce is 'always' or 'never'"),
        ({"loss": "gbce", "alpha": 1.5}, "model.alpha is 1 with loss='gbce'"),
        ({"dim": 0}, "model.dim is at least 1"),
        ({"dim": 40}, "content: 24 warm items with 8 features"),
        ({"reduce": "never", "dim": 4}, "content has 8 features and model.dim is 4"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises((ValueError, DataError), match=message):
        sasrec.build(circle(), **options(**changes))


def test_content_is_unit_rows_from_warm_items_alone():
    dataset = circle()
    rows, _ = sasrec.contents(dataset, 8, "always")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    same, _ = sasrec.contents(dataset, 8, "never")
    np.testing.assert_allclose(same, unit_rows(dataset.content))


def test_the_average_of_parameters_is_what_is_served():
    dataset, decay = circle(), 0.9
    chosen = options(item_table="delta", average=decay, dropout=0.0)
    model = sasrec.build(dataset, **chosen)
    plain = sasrec.build(dataset, **{**chosen, "average": 0.0})
    states = [init_state(model, 0), init_state(plain, 0)]
    expected = jax.tree.map(np.array, states[1].params["main"])
    steps, key = (make_step(model), make_step(plain)), jax.random.key(0)
    for batch in model.batches(np.random.default_rng(0)):
        before = jax.tree.map(np.array, states[1].params["main"])
        expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, expected, before)
        states = [
            step(state, m.constants, batch, key)[0]
            for step, state, m in zip(steps, states, (model, plain), strict=True)
        ]
    # The training itself is not changed.
    assert_trees_close(states[0].params, states[1].params)
    assert_trees_close(states[0].model_state, expected)
    served = {"main": expected}
    vectors = plain.encode_items(served, ())
    np.testing.assert_allclose(
        model.encode_items(states[0].params, states[0].model_state), vectors, atol=1e-6
    )
    histories = dataset.val.history
    np.testing.assert_allclose(
        model.encode_users(states[0].params, states[0].model_state, vectors, histories),
        plain.encode_users(served, (), vectors, histories),
        atol=1e-5,
    )


def assert_trees_close(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
