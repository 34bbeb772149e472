"""Cold-start baselines against their published code: loss terms, two steps, and cold vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.models import aldi, clcrec, freedom, gar, gorec, heater
from jaxcold.models.backbone import Backbone, Batch, scale_magnitudes
from jaxcold.train.step import TrainState, init_state, make_step

# Float64 references, and Optax's steps by hand.
pytestmark = pytest.mark.usefixtures("standard_promotion")

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def dataset_of(arrays, content=None):
    """The data set of a fixture: two modes, side by side."""
    pairs, warm, cold = arrays["train_pairs"], arrays["warm_items"], arrays["cold_items"]
    train = Interactions(*pairs.T.astype(np.int32), 10, 24)
    tables = content or {"a": arrays["content"][:, :8], "b": arrays["content"][:, 8:]}
    features = ContentFeatures(tables, {mode: np.ones(24, bool) for mode in tables})
    split = ColdSplit(
        train, warm.astype(np.int32), cold[:3], cold[3:], {"warm_train": train.pairs()}
    )
    return Dataset("golden", train, split, features, np.arange(10), np.arange(24))


def dense_of(weights, name):
    layer = {"kernel": weights[f"{name}.weight"].T}
    return {**layer, "bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else layer


def norm_of(weights, name):
    running = {"mean": f"{name}.running_mean", "var": f"{name}.running_var"}
    return (
        {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]},
        {key: weights[path] for key, path in running.items()},
    )


def weights_of(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def batches_of(arrays):
    for rows in arrays["batches"]:
        yield Batch(*rows[:, :3].T, np.ones(len(rows)))


def as_arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def run_two_steps(model, params, model_state, batches, losses=({}, {})):
    """State and metrics after each step; `losses` replaces those of the model, step by step."""
    params, model_state = as_arrays(params), as_arrays(model_state)
    opt_state = {group: model.optimizers[group].init(params[group]) for group in model.losses}
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, model_state)
    measured = []
    for batch, own in zip(batches, losses, strict=True):
        step = make_step(model._replace(losses={**model.losses, **own}))
        state, metrics = step(state, model.constants, as_arrays(batch), jax.random.key(0))
        measured.append(metrics)
    return state, {name: [m[name] for m in measured] for name in measured[0]}


def exact(model, **arrays):
    """The model with constants in double precision."""
    arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
    return model._replace(constants=model.constants._replace(**arrays))


def with_backbone(module, arrays, **options):
    backbone = Backbone(arrays["frozen_user_emb"], arrays["frozen_item_emb"])
    model = module.build(
        dataset_of(arrays),
        backbone,
        batch_size=16,
        epochs=1,
        learning_rate=float(arrays["hp/lr"]),
        l2=float(arrays["hp/reg"]),
        **options,
    )
    return exact(
        model, content=arrays["content"], user=backbone.user, item=arrays["frozen_item_emb"]
    )


def assert_served(encoders, state, constants, arrays, width=64):
    """Users and cold items; the half of a vector that scores cold ones."""
    rows = arrays["content"][arrays["cold_items"]]
    cold = encoders.cold(state.params, state.model_state, constants, jnp.asarray(rows))
    users = encoders.users(state.params, state.model_state, constants)
    close(cold[:, :width], arrays["out/cold_item_emb"])
    close(users[:, :width], arrays["out/user_emb"])
    close(users @ cold.T, arrays["out/cold_scores"])


def assert_params(actual, expected):
    jax.tree.map(close, actual, expected)


@pytest.mark.usefixtures("x64")
def test_clcrec(golden):
    arrays = golden("baselines/clcrec")

    def params(prefix):
        weights = weights_of(arrays, prefix)
        return {
            "user": weights["embedding_dict.user_emb"],
            "item": weights["embedding_dict.item_emb"],
            "first": dense_of(weights, "encoder_layer1"),
            "second": dense_of(weights, "encoder_layer2"),
        }

    model = clcrec.build(
        dataset_of(arrays),
        batch_size=6,
        epochs=1,
        negatives=4,
        tau=float(arrays["hp/temp_value"]),
        lam=float(arrays["hp/lr_lambda"]),
        l2=float(arrays["hp/reg"]),
        learning_rate=float(arrays["hp/lr"]),
        reference=True,
    )
    warm = arrays["content"][arrays["warm_items"]]
    model = exact(model, content=arrays["content"], warm_content=warm)
    batches = [  # items 0 to 17 are the warm ones: their places are their numbers
        clcrec.Batch(pairs[:, 0], slots, np.bincount(drawn, minlength=30).reshape(6, 5), np.ones(6))
        for pairs, slots, drawn in zip(
            arrays["batches"], arrays["clc_items"], arrays["clc_rand_index"], strict=True
        )
    ]
    state, measured = run_two_steps(model, {"main": params("w0/")}, (), batches)
    close(measured["re"], arrays["loss/re"])
    close(measured["ui"], arrays["loss/ui"])
    close(measured["norms"], arrays["loss/reg_unscaled"])
    close(measured["loss"], arrays["loss/total"])
    assert_params(state.params["main"], params("w2/"))
    assert_served(clcrec.ENCODERS, state, model.constants, arrays)
    warm = clcrec.ENCODERS.warm(state.params, (), model.constants)[arrays["warm_items"]]
    close(warm, arrays["out/warm_item_emb"])


@pytest.mark.usefixtures("x64")
def test_heater(golden):
    arrays = golden("baselines/heater")

    def params(prefix):
        weights = weights_of(arrays, f"{prefix}heater_encoder.")
        return {
            "first": dense_of(weights, "fc.linear1"),
            "second": dense_of(weights, "fc.linear2"),
            "gate": dense_of(weights, "gate.linear"),
            "experts": [dense_of(weights, f"experts.{k}.0") for k in range(3)],
            "user": dense_of(weights, "out_linear_u.0"),
            "item": dense_of(weights, "out_linear_i.0"),
        }

    alpha = float(arrays["hp/alpha"])
    mixing = float(arrays["hp/n_dropout"])
    model = with_backbone(heater, arrays, experts=3, mixing=mixing, alpha=alpha)
    batches = batches_of(arrays)
    state, measured = run_two_steps(model, {"main": params("w0/")}, (), batches)
    close(measured["mse"], arrays["loss/mse"])
    close(alpha * np.array(measured["positive"]), arrays["loss/diff_pos"])
    close(alpha * np.array(measured["negative"]), arrays["loss/diff_neg"])
    close(measured["loss"], arrays["loss/total"])
    assert_params(state.params["main"], params("w2/"))
    assert_served(heater.ENCODERS, state, model.constants, arrays)


@pytest.mark.usefixtures("x64")
def test_gar(golden):
    arrays = golden("baselines/gar")

    def params(prefix):
        weights = weights_of(arrays, prefix)
        norm, running = norm_of(weights, "generator.1")
        generator = {
            "first": dense_of(weights, "generator.0"),
            "norm": norm,
            "second": dense_of(weights, "generator.4"),
        }
        heads = {side: dense_of(weights, f"mlps.{side}") for side in ("user", "item")}
        return {"heads": heads, "generator": generator}, running

    model = with_backbone(
        gar,
        arrays,
        alpha=float(arrays["hp/alpha"]),
        beta=float(arrays["hp/beta"]),
        dropout=0.0,
        reference=True,
    )
    first, running = params("w0/")
    # Buffers of their own: the step donates its state.
    before = jax.tree.map(np.copy, first["heads"])
    state, measured = run_two_steps(
        model, first, {"running": running, "heads": before}, batches_of(arrays)
    )
    close(measured["heads/adversarial"], arrays["loss/D_adv"])
    close(measured["heads/real"], arrays["loss/D_real"])
    close(measured["generator/adversarial"], arrays["loss/G_adv"])
    close(measured["generator/similarity"], arrays["loss/G_sim"])
    close(measured["loss/heads"], arrays["loss/D_total"])
    close(measured["loss/generator"], arrays["loss/G_total"])
    expected, running = params("w2/")
    assert_params(state.params, expected)
    assert_params(state.model_state["running"], running)
    assert_served(gar.ENCODERS, state, model.constants, arrays)
    warm = gar.ENCODERS.warm(state.params, state.model_state, model.constants)
    close(warm[arrays["warm_items"]], arrays["out/warm_item_emb"])


@pytest.mark.usefixtures("x64")
def test_aldi(golden):
    arrays = golden("baselines/aldi")

    def params(prefix):
        weights = weights_of(arrays, prefix)
        result, running = {}, {}
        for side in ("user", "item"):
            norm, running[side] = norm_of(weights, f"{side}_tower.bn")
            first, second = (dense_of(weights, f"{side}_tower.fc{n}") for n in (1, 2))
            result[side] = {"first": first, "norm": norm, "second": second}
        return {"main": result}, running

    options = {name: float(arrays[f"hp/{name}"]) for name in ("alpha", "beta", "gamma")}
    model = exact(with_backbone(aldi, arrays, **options), item_weight=np.ones(24))
    first, running = params("w0/")
    batches = list(batches_of(arrays))
    state, measured = run_two_steps(model, first, running, batches)
    close(measured["supervised"], arrays["loss/sup"])
    close(measured["rating"], arrays["loss/rating_unscaled"])
    close(measured["ranking"], arrays["loss/rank_unscaled"])
    close(measured["identification"], arrays["loss/iden_unscaled"])
    close(measured["loss"], arrays["loss/total"])
    expected, running_after = params("w2/")
    assert_params(state.params, expected)
    assert_params(state.model_state, running_after)
    assert_served(aldi.ENCODERS, state, model.constants, arrays)

    weights = aldi.item_weights(dataset_of(arrays), float(arrays["hp/freq_coef_M"]))
    warm = arrays["warm_items"]  # nobody has taken the others, and no pair asks for theirs
    close(weights[warm], arrays["tws1/item_weight"][warm])
    weighted = exact(model, item_weight=weights)
    terms, _ = aldi.loss_terms(
        as_arrays(first), as_arrays(running), weighted.constants, as_arrays(batches[0])
    )
    close(terms["ranking"], arrays["tws1/loss_rank_unscaled_step1"])
    close(terms["identification"], arrays["tws1/loss_iden_unscaled_step1"])


@pytest.mark.usefixtures("x64")
def test_gorec(golden):
    arrays = golden("baselines/gorec")

    def params(prefix):
        weights = weights_of(arrays, prefix)
        result, running = {}, {}
        for half in ("encoder", "decoder"):
            norm, running[half] = norm_of(weights, f"{half}.fc.1")
            result[half] = {"first": dense_of(weights, f"{half}.fc.0"), "norm": norm}
        for ours, theirs in (
            ("mean", "l_mu"),
            ("logvar", "l_var"),
            ("prior_mean", "l_mu_zgc"),
            ("prior_logvar", "l_var_zgc"),
        ):
            result["encoder"][ours] = dense_of(weights, f"encoder.{theirs}")
        for ours, theirs in (("second", 0), ("third", 1)):
            result["decoder"][ours] = dense_of(weights, f"decoder.geneator.{theirs}.linear")
        return {"main": result}, running

    model = with_backbone(
        gorec,
        arrays,
        clusters=12,
        uniformity_weight=float(arrays["hp/uni_coeff"]),
        divergence_weight=float(arrays["hp/kl_coeff"]),
        dropout=0.0,
        reference=True,
    )
    first, running = params("w0/")
    losses = [
        {"main": functools.partial(model.losses["main"], noise=tuple(jnp.asarray(noise)))}
        for noise in arrays["eps"]
    ]
    state, measured = run_two_steps(model, first, running, batches_of(arrays), losses)
    close(measured["reconstruction"], arrays["loss/rec"])
    close(measured["uniformity"], arrays["loss/uni_unscaled"])
    close(measured["divergence"], arrays["loss/kl_unscaled"])
    close(measured["loss"], arrays["loss/total"])
    expected, running = params("w2/")
    assert_params(state.params, expected)
    assert_params(state.model_state, running)

    # The clusters' means are given; NaN where a cluster has no warm item.
    items = arrays["cold_items"]
    means = np.nan_to_num(arrays["cluster_cfmean"][items])
    content = jnp.asarray(arrays["content"][items])
    cold = gorec.embed(state.params, state.model_state, content, jnp.asarray(means))
    known = ~np.isnan(arrays["out/cold_item_emb"]).any(axis=1)
    assert 0 < known.sum() < len(known)
    close(cold[known], arrays["out/cold_item_emb"][known])
    # One cluster per label: items whose label has no warm item are far below all others.
    label = arrays["cluster_label"]
    centres = np.stack([arrays["content"][label == k].mean(0) for k in range(label.max() + 1)])
    mean = np.array([np.nan_to_num(arrays["cluster_cfmean"][label == k][0]) for k in range(12)])
    has_warm = np.array([(np.flatnonzero(label == k) < 18).any() for k in range(12)])
    constants = exact(model, centres=centres, cluster_mean=mean, has_warm=has_warm).constants
    encoders = gorec.REFERENCE_ENCODERS
    rows = encoders.cold(state.params, state.model_state, constants, content)
    scores = encoders.users(state.params, state.model_state, constants) @ rows.T
    close(scores[:, known], arrays["out/cold_scores"][:, known])
    assert (scores[:, ~known] < scores[:, known].min() - 1000).all()
    mended = gorec.ENCODERS.cold(state.params, state.model_state, constants, content)
    assert np.isfinite(mended).all()
    assert np.abs(mended).max() < 100


def test_freedom(golden):
    arrays = golden("baselines/freedom")
    edges, content = arrays["edges"], {k: arrays[f"{k}_feat"] for k in ("image", "text")}
    train = Interactions(*edges.T.astype(np.int32), 6, 12)
    features = ContentFeatures(content, {mode: np.ones(12, bool) for mode in content})
    items = np.arange(12, dtype=np.int32)
    split = ColdSplit(train, items, items[:0], items[:0], {"warm_train": train.pairs()})
    data = Dataset("golden", train, split, features, np.arange(6), items)
    model = freedom.build(
        data,
        batch_size=8,
        epochs=1,
        dim=8,
        k=3,
        edge_dropout=0.5,
        lam=float(arrays["hp/reg_weight"]),
        text_weight=0.9,
    )
    graph = np.zeros((12, 12))
    constants = model.constants
    for item, near in enumerate(np.asarray(constants.neighbours)):
        np.add.at(graph[item], near, np.asarray(constants.neighbour_weight))
    close(graph, arrays["mm_adj"])

    def params(prefix):
        weights = weights_of(arrays, prefix)
        projection = {
            mode: {"kernel": weights[f"{mode}_W"].T, "bias": weights[f"{mode}_b"]}
            for mode in content
        }
        own = {mode: weights[f"{mode}_feat"] for mode in content}
        tables = {"user": weights["user_emb"], "item": weights["item_emb"]}
        return {"main": {**tables, "features": own, "projection": projection}}

    first = as_arrays(params("w0/"))
    user, item = freedom.vectors(first, constants, constants.edges)
    close(user, arrays["out0/user"])
    close(item, arrays["out0/item"])
    pairs = Batch(*arrays["batch"].T, np.ones(8, np.float32))
    batch = freedom.GraphBatch(pairs, freedom.Edges(*arrays["kept_edges"].T))
    state = init_state(model, 0)._replace(params=first)
    state, measured = make_step(model)(state, constants, as_arrays(batch), jax.random.key(0))
    close(measured["ranking"], arrays["loss/mf"])
    close(measured["ranking/text"], arrays["loss/text_unscaled"])
    close(measured["ranking/image"], arrays["loss/image_unscaled"])
    close(measured["loss"], arrays["loss/total"])
    expected = params("w1/")
    for mode, layer in expected["main"]["projection"].items():
        # It cancels in a difference of scores: what moves it is rounding alone.
        layer["bias"] = state.params["main"]["projection"][mode]["bias"]
    assert_params(state.params, expected)
    user, item = freedom.vectors(state.params, constants, constants.edges)
    close(user, arrays["out1/user"])
    close(item, arrays["out1/item"])


def test_edges_are_kept_by_their_odds(golden):
    """As many as asked for, and edges of large degrees least often."""
    arrays = golden("baselines/freedom")
    edges = freedom.Edges(*arrays["edges"].T)
    times = np.zeros(len(edges.user))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        kept = freedom.kept_edges(rng, edges, 0.9)
        assert len(kept.user) == 2
        times += np.isin(edges.user * 12 + edges.item, kept.user * 12 + kept.item)
    odds = arrays["edge_prob_unnormalised"]
    # Two of 24 are drawn: close to proportional.
    np.testing.assert_allclose(times / times.sum(), odds / odds.sum(), atol=0.012)


def test_magnitude_scaling(golden):
    arrays = golden("baselines/magnitude_scaling")
    rows, alpha = arrays["item_emb"], float(arrays["alpha"])
    norm = np.linalg.norm(rows[arrays["warm_idx"]], axis=1).mean()
    close(scale_magnitudes(rows, norm, alpha), arrays["out"])
    assert scale_magnitudes(rows, norm, 0.0) is rows
    np.testing.assert_array_equal(scale_magnitudes(np.zeros((1, 3)), 2.0, 1.0), 0)


def test_the_mended_item_head_of_gar_learns():
    heads = {side: {"kernel": jnp.eye(2), "bias": jnp.zeros(2)} for side in ("user", "item")}
    for reference in (False, True):
        optimizer = gar.heads_optimizer(1e-3, 0.0, reference=reference)
        grads = jax.tree.map(jnp.ones_like, heads)
        updates, _ = optimizer.update(grads, optimizer.init(heads), heads)
        moved = optax.apply_updates(heads, updates)
        assert bool((moved["item"]["kernel"] == jnp.eye(2)).all()) is reference
        assert (moved["user"]["kernel"] != jnp.eye(2)).all()
