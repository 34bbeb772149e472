"""The training step of several groups, against the same steps written out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcold import parallel
from jaxcold.train.loop import fit
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Model, ShardingSpec

ROWS, STEPS = 6, 4
GROUPS = ("discriminator", "generator")
RATES = {"discriminator": 0.05, "generator": 0.1}


def batches(number=STEPS):
    """Real rows and noise; the last row of every second batch is padding."""
    rng = np.random.default_rng(0)
    weight = np.ones((number, ROWS), np.float32)
    weight[1::2, -1] = 0
    return [
        {
            "real": rng.normal(size=(ROWS, 2)).astype(np.float32) + 2,
            "noise": rng.normal(size=(ROWS, 3)).astype(np.float32),
            "weight": weight[at],
        }
        for at in range(number)
    ]


def initial():
    rng = np.random.default_rng(1)
    return {
        "generator": {
            "kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
            "bias": jnp.zeros(2),
        },
        "discriminator": {"direction": jnp.asarray(rng.normal(size=2), jnp.float32)},
    }


def generate(generator, noise):
    return noise @ generator["kernel"] + generator["bias"][None, :]


def scores(params, constants, batch, key):
    """Of the real rows, which are moved a little at random, and of the generated ones."""
    direction = params["discriminator"]["direction"] * constants["scale"]
    moved = batch["real"] + 0.1 * jax.random.normal(key, (2,))[None, :]
    return moved @ direction, generate(params["generator"], batch["noise"]) @ direction


def discriminator_loss(params, model_state, constants, batch, key, axis=None):
    real, generated = scores(params, constants, batch, key)
    losses = jax.nn.softplus(-real) + jax.nn.softplus(generated)
    weight = batch["weight"]
    metrics = {"real": jnp.sum(jnp.where(real > 0, weight, 0.0))}
    return jnp.sum(losses * weight), (jnp.sum(weight), 2 * model_state + 1, metrics)


def generator_loss(params, model_state, constants, batch, key, axis=None):
    _, generated = scores(params, constants, batch, key)
    weight = batch["weight"]
    metrics = {"generated": jnp.sum(jnp.where(generated > 0, weight, 0.0))}
    total = jnp.sum(jax.nn.softplus(-generated) * weight)
    return total, (jnp.sum(weight), 3 * model_state, metrics)


LOSSES = {"discriminator": discriminator_loss, "generator": generator_loss}


def adversarial(order=GROUPS, devices=None, **changes):
    """A discriminator trained by Adam and a generator trained by SGD, updated in this order.

    The model state is doubled and one added with the discriminator, and tripled with the generator:
    it tells the order too.
    """
    optimizers = {
        "discriminator": optax.adam(RATES["discriminator"]),
        "generator": optax.sgd(RATES["generator"]),
    }
    model = Model(
        constants={"scale": jnp.array([1.0, 0.5])},
        init=lambda seed: (initial(), jnp.int32(1)),
        losses={group: LOSSES[group] for group in order},
        optimizers=optimizers,
        batches=lambda rng: iter(batches()),
        encode_items=lambda *_: None,
        encode_users=lambda *_: None,
        steps_per_epoch=STEPS,
        examples_per_epoch=STEPS * ROWS,
        epochs=1,
        devices=devices,
        sharding=ShardingSpec(batch=("real", "noise", "weight")),
    )
    return model._replace(**changes)


def trained(model, number=STEPS):
    """The state after some steps, and the metrics of each."""
    step, state = make_step(model), init_state(model, 0)
    metrics = []
    for batch in batches(number):
        if model.devices is not None and model.devices.mesh is not None:
            batch = model.devices.put(batch, model.sharding.batch)
        state, of_step = step(state, model.constants, batch, jax.random.key(3))
        metrics.append(jax.device_get(of_step))
    return state, metrics


@functools.cache
def by_hand(order):
    """Parameters, state of Adam, model state and metrics, without the library's step."""
    params, model_state = initial(), 1
    optimizers = {"discriminator": optax.adam(0.05), "generator": optax.sgd(0.1)}
    states = {group: optimizers[group].init(params[group]) for group in GROUPS}
    scale = jnp.array([1.0, 0.5])
    metrics = []

    def mean(losses, batch):
        return jnp.sum(losses * batch["weight"]) / np.sum(batch["weight"])

    def of_discriminator(own, generator, batch, jitter):
        direction = own["direction"] * scale
        fake = (batch["noise"] @ generator["kernel"] + generator["bias"][None, :]) @ direction
        real = (batch["real"] + jitter) @ direction
        return mean(jax.nn.softplus(-real) + jax.nn.softplus(fake), batch)

    def of_generator(own, discriminator, batch, jitter):
        fake = batch["noise"] @ own["kernel"] + own["bias"][None, :]
        return mean(jax.nn.softplus(-(fake @ (discriminator["direction"] * scale))), batch)

    losses = {"discriminator": of_discriminator, "generator": of_generator}
    other = {"discriminator": "generator", "generator": "discriminator"}
    for number, batch in enumerate(batches()):
        key = jax.random.fold_in(jax.random.key(3), number)
        of_step = {}
        for place, group in enumerate(order):  # each with a key of its own
            own_key = jax.random.fold_in(key, place)
            jitter = 0.1 * jax.random.normal(own_key, (2,))[None, :]
            value, gradient = jax.value_and_grad(losses[group])(
                params[group], params[other[group]], batch, jitter
            )
            update, states[group] = optimizers[group].update(gradient, states[group], params[group])
            params = {**params, group: optax.apply_updates(params[group], update)}
            model_state = 2 * model_state + 1 if group == "discriminator" else 3 * model_state
            of_step[f"loss/{group}"] = value
        metrics.append(of_step | {"loss": sum(of_step.values())})
    return params, states, model_state, metrics


def assert_by_hand(model, order):
    state, metrics = trained(model)
    params, states, model_state, expected = by_hand(order)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert int(state.step) == STEPS
    assert int(state.model_state) == model_state
    jax.tree.map(close, state.params, params)
    jax.tree.map(close, state.opt_state, states)
    for of_step, values in zip(metrics, expected, strict=True):
        assert of_step.keys() == {*values, "real", "generated"}
        for name, value in values.items():
            close(of_step[name], value, err_msg=name)
    return state, metrics


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("order", [GROUPS, GROUPS[::-1]])
def test_groups_are_updated_in_order_each_by_its_own_optimizer(order):
    assert_by_hand(adversarial(order), order)


@pytest.mark.usefixtures("standard_promotion")
def test_the_order_of_the_groups_matters():
    first, second = (by_hand(order) for order in (GROUPS, GROUPS[::-1]))
    assert first[2] != second[2]
    kernels = [params["generator"]["kernel"] for params, *_ in (first, second)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("parallelism", ["shard_map", "pmap"])
def test_groups_on_two_devices_are_those_of_one(parallelism):
    devices = parallel.choose(parallelism, count=2)
    _, metrics = assert_by_hand(adversarial(devices=devices), GROUPS)
    for of_step, alone in zip(metrics, trained(adversarial())[1], strict=True):
        assert (of_step["real"], of_step["generated"]) == (alone["real"], alone["generated"])


def test_a_group_gets_the_gradient_of_its_own_loss_alone():
    """The generator's loss depends on the discriminator, whose own loss does not."""

    def norm_loss(params, model_state, constants, batch, key):
        rows = generate(params["generator"], batch["noise"])
        return jnp.sum(rows**2), (jnp.sum(batch["weight"]), model_state, {})

    def recording():
        """Keeps the gradient that it was given as its state, and moves nothing."""
        return optax.GradientTransformation(
            lambda params: jax.tree.map(jnp.zeros_like, params),
            lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
        )

    model = adversarial(
        losses={"discriminator": norm_loss, "generator": generator_loss},
        optimizers={group: recording() for group in GROUPS},
    )
    state, _ = trained(model, 1)
    assert state.opt_state["discriminator"].keys() == {"direction"}
    np.testing.assert_array_equal(state.opt_state["discriminator"]["direction"], 0)
    assert state.opt_state["generator"].keys() == {"kernel", "bias"}
    # That of its own loss, and nothing of the discriminator's, which is larger.
    batch, params, constants = batches(1)[0], initial(), model.constants
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 1)

    def own_mean(own):
        every = params | {"generator": own}
        return generator_loss(every, 0, constants, batch, key)[0] / ROWS

    wanted = jax.grad(own_mean)(params["generator"])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, state.opt_state["generator"], wanted)
    jax.tree.map(np.testing.assert_array_equal, state.params, initial())


def test_a_batch_of_weight_zero_gives_no_gradient():
    model = adversarial(optimizers={group: optax.sgd(1.0) for group in GROUPS})
    empty = batches(1)[0] | {"weight": np.zeros(ROWS, np.float32)}
    state, metrics = make_step(model)(
        init_state(model, 0), model.constants, empty, jax.random.key(0)
    )
    assert metrics["loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, initial())


def test_one_group_has_no_loss_of_its_own_name():
    model = adversarial()
    model = model._replace(
        losses={"discriminator": LOSSES["discriminator"]},
        optimizers={"discriminator": optax.sgd(0.1)},
    )
    state, metrics = trained(model, 1)
    assert metrics[0].keys() == {"loss", "real"}
    # What no group trains stays.
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], initial()["generator"])


@pytest.mark.parametrize("make", [make_step, lambda model: init_state(model, 0)])
@pytest.mark.parametrize("groups", [("discriminator",), ("generator", "other"), ()])
def test_losses_and_optimizers_of_other_groups_are_refused(make, groups):
    model = adversarial(optimizers={group: optax.sgd(0.1) for group in groups})
    with pytest.raises(ValueError, match=r"losses are of the groups \['discriminator', 'generat"):
        make(model)


@pytest.mark.parametrize(("number", "message"), [(0, "0"), (STEPS - 1, "3"), (STEPS + 1, "more")])
def test_an_epoch_of_another_number_of_batches_raises(number, message):
    model = adversarial(batches=lambda rng: iter(batches(number)))

    def step(state, constants, batch, key):
        return state, {"loss": jnp.zeros(())}

    with pytest.raises(ValueError, match=rf"epoch 1 has {message} batches; steps_per_epoch is 4"):
        fit(model, step, init_state(model, 0), seed=0)


def test_keys_of_steps_are_not_keys_of_parameters():
    """Parameters are drawn from the seed's key folded with small numbers; no step's key is one."""
    seed, seen = 3, []

    def loss(params, model_state, constants, batch, key):
        jax.debug.callback(
            lambda data: seen.append(tuple(np.asarray(data))), jax.random.key_data(key)
        )
        return jnp.sum(params["main"]["w"] ** 2), (jnp.ones(()), model_state, {})

    model = Model(
        constants=None,
        init=lambda seed: ({"main": {"w": jnp.ones(2)}}, ()),
        losses={"main": loss},
        optimizers={"main": optax.sgd(0.1)},
        batches=lambda rng: iter(range(5)),
        encode_items=None,
        encode_users=None,
        steps_per_epoch=5,
        examples_per_epoch=5,
        epochs=2,
    )
    fit(model, make_step(model), init_state(model, seed), seed=seed)
    jax.effects_barrier()
    key = jax.random.key(seed)
    of_parameters = [key, *(jax.random.fold_in(key, n) for n in range(100))]
    taken = {tuple(np.asarray(jax.random.key_data(k))) for k in of_parameters}
    assert len(set(seen)) == 10
    assert not taken & set(seen)
