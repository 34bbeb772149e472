"""Many devices, simulated: what one device computes, with each holding and moving its part."""

import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from test_main import small
from test_resume import cut_run
from test_sasrec import circle
from test_semco import tiny
from test_sequential_runs import config_of as sequences_config

from experiments import clothing, runner
from experiments import config as base
from experiments.bench import scaling
from experiments.bench.toy import write_log, write_mmrec
from jaxcold import models, parallel
from jaxcold.data import text_tables
from jaxcold.eval.ranking import top_k
from jaxcold.reporting import tables as report
from jaxcold.sparse import linear_entmax_sum, sharded_entmax_sum
from jaxcold.train import transforms as optim
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, DataError, EvalSlice, Representations

# Every pair of a form and a model that has its own line of code takes minutes to compile; these
# stand for them every time, the others when asked for.
THOROUGH = pytest.mark.skipif(
    not os.environ.get("JAXCOLD_THOROUGH"), reason="set JAXCOLD_THOROUGH=1 for all combinations"
)
SEMCO = {"batch_size": 19, "alpha": 2.0, "tau": 2.5, "hidden": 6, "out": 4}


@pytest.fixture
def quick():
    """Programs that run a few steps need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def steps(model, optimizer, number=5):
    """The state after some steps, whatever the length of an epoch, and what they logged."""
    step, state = make_step(model, optimizer), init_state(model, optimizer, 0)
    logs, epoch = [], 0
    while len(logs) < number:
        for batch in model.batches(np.random.default_rng(epoch)):
            if len(logs) < number:
                state, found = step(state, model.fixed, batch, jax.random.key(1))
                logs.append(jax.device_get(found))
        epoch += 1
    return state, logs


def equal(got, want, tolerance=2e-5):
    """Two states agree; rows that only make a table divisible do not count."""

    def leaf(got, want):
        got, want = np.asarray(got), np.asarray(want)
        if got.shape != want.shape:
            assert not got[len(want) :].any()
            got = got[: len(want)]
        np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)

    jax.tree.map(leaf, got, want)


@functools.cache
def alone(kind, **changes):
    """Five steps of plain gradient descent on one device."""
    return kind(parallel.ONE, **changes)


def compare(kind, devices, same=(), **changes):
    """The results on several devices are those on one.

    Args:
        kind: semco, distillation or sasrec.
        devices: the devices.
        same: options that make no difference to the results.
        changes: options.
    """
    state, logs = kind(devices, **changes, **dict(same))
    wanted, expected = alone(kind, **changes)
    equal(state.params, wanted.params)
    equal(state.extra, wanted.extra)
    equal(logs, expected)
    assert int(state.step) == 5
    return state


def golden(name):
    path = pathlib.Path(__file__).parent / "golden" / f"{name}.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def semco(devices, **changes):
    # 1 of the last batch's 19 rows is there, and 30 items are not divisible by 4 or 8 either.
    model = models.build("semco", tiny(golden), devices=devices, **SEMCO | changes)
    assert model.examples_per_epoch % 19
    return steps(model, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("form", "count", "same", "changes"),
    [
        ("pmap", 8, {}, {"user_vector": "leave_one_out"}),
        ("shard_map", 3, {"encode": "active", "stream": True}, {"user_vector": "leave_one_out"}),
        pytest.param("shard_map", 1, {}, {}, marks=THOROUGH),
        pytest.param("pmap", 2, {"encode": "active"}, {}, marks=THOROUGH),
        pytest.param("shard_map", 4, {"encode": "active"}, {}, marks=THOROUGH),
        pytest.param("shard_map", 8, {}, {"alpha": 1.5, "gradient": "autodiff"}, marks=THOROUGH),
    ],
)
def test_semco(form, count, same, changes, quick):
    compare(semco, parallel.choose(form, count=count), same, **changes)


DISTILLATION = {
    "alpha": 1.5,
    "tau": 2.0,
    "teacher_tau": 2.5,
    "lam": 1.0,
    "omega": 2.0,
    "positives": 3,
    "teacher_epochs": 1,
    "hidden": 5,
    "out": 3,
    "teacher_hidden": 8,
    "teacher_out": 6,
    "batch_size": 70,
}


def distillation(devices, *, online, **changes):
    name = "semco_online" if online else "semco_offline"
    model = models.build(name, tiny(golden), devices=devices, **DISTILLATION | changes)
    stops = model.steps_per_epoch
    assert stops < 4  # a student learns, and looks at a teacher that has stopped
    optimizer = optim.in_turn(
        optax.sgd(0.1),
        optax.sgd(0.1),
        teacher_stops=stops,
        student_starts=0 if online else stops,
    )
    return steps(model, optimizer)


@pytest.mark.parametrize(
    ("form", "count", "shard_items", "changes"),
    [
        ("pmap", 8, True, {"online": True, "ema": 0.5}),
        pytest.param("shard_map", 4, False, {"online": True, "ema": 0.5}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"online": False}, marks=THOROUGH),
        pytest.param("jit", None, True, {"online": False}, marks=THOROUGH),
    ],
)
def test_distillation(form, count, shard_items, changes, quick):
    devices = parallel.choose(form, count=count, shard_items=shard_items)
    compare(distillation, devices, **changes)


SASREC = {"batch_size": 29, "dim": 8, "max_length": 6, "blocks": 1, "dropout": 0.0}


def sasrec(devices, *, adam=False, **changes):
    # Of the last batch there are 2 sequences: fewer than devices.
    model = models.build("sasrec", circle(), devices=devices, **SASREC | changes)
    assert circle().train.rows % SASREC["batch_size"] == 2
    if not adam:
        return steps(model, optax.sgd(0.1))
    # Some gradients are zero but for rounding; Adam would make steps of them.
    bounded = optax.masked(
        optim.clip_row_norm(0.05), lambda params: parallel.sharding_tree(params, ("delta",))
    )
    return steps(model, optax.chain(optax.adam(1e-2, eps=1e-2), bounded))


@pytest.mark.parametrize(
    ("form", "count", "shard_items", "changes"),
    [
        ("pmap", 4, False, {"item_table": "random", "alpha": 2.0}),
        pytest.param("pmap", 4, True, {"item_table": "random", "alpha": 2.0}, marks=THOROUGH),
        pytest.param("shard_map", 8, False, {"item_table": "frozen"}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"item_table": "frozen"}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"item_table": "content", "alpha": 1.5}, marks=THOROUGH),
        pytest.param("shard_map", 4, True, {"loss": "sampled", "negatives": 9}, marks=THOROUGH),
        pytest.param("pmap", 2, False, {"loss": "gbce", "negatives": 9}, marks=THOROUGH),
        pytest.param("pmap", 2, False, {"reference": True}, marks=THOROUGH),
        pytest.param("jit", None, True, {"item_table": "delta", "adam": True}, marks=THOROUGH),
    ],
)
def test_sasrec(form, count, shard_items, changes, quick):
    compare(sasrec, parallel.choose(form, count=count, shard_items=shard_items), **changes)


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_best_lists_are_those_of_one_device(form):
    rng = np.random.default_rng(0)
    # Small whole numbers: equal scores, and no rounding.
    user, item = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (7, 30))
    candidates = np.sort(rng.choice(30, 21, replace=False)).astype(np.int32)
    hidden = Csr.from_pairs(rng.integers(0, 7, 40), rng.integers(0, 30, 40), 7)
    nobody = Csr.from_pairs(np.zeros(0, int), np.zeros(0, int), 7)
    question = EvalSlice(np.arange(7), nobody, hidden, candidates, candidates)
    vectors = Representations(user, item)
    for k in (4, 25):
        want = top_k(vectors, question, k, method="host")
        got = top_k(vectors, question, k, block_users=3, devices=parallel.choose(form))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_no_device_holds_a_whole_table(quick):
    devices = parallel.choose("shard_map", count=8, shard_items=True)
    state = compare(sasrec, devices, item_table="delta", adam=True)
    split = jax.tree.leaves(parallel.sharding_tree(state, ("delta",)))
    leaves = list(zip(jax.tree.leaves(state), split, strict=True))
    tables = [leaf for leaf, divided in leaves if divided]
    assert len(tables) == 3  # and both of Adam's moments
    assert all(leaf.sharding.is_fully_replicated for leaf, divided in leaves if not divided)
    model = models.build("sasrec", circle(), devices=devices, **SASREC)
    for table in (*tables, model.fixed.content):
        assert {piece.data.shape for piece in table.addressable_shards} == {(4, 8)}
    # One shape for any number of devices: so are checkpoints.
    one = models.build("sasrec", circle(), devices=parallel.choose(shard_items=True), **SASREC)
    assert jax.tree.map(jnp.shape, one.init(0)[0]) == jax.tree.map(jnp.shape, state.params)
    # What is trained is served.
    served = model.represent(state.params, (), "test")
    wanted = one.represent(jax.device_get(state.params), (), "test")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), served, wanted)


@pytest.mark.parametrize(
    ("kind", "alpha", "shard_items"), [("semco", 2.0, False), ("sasrec", 1.0, True)]
)
def test_bytes_held_and_moved_are_those_of_the_formulas(kind, alpha, shard_items):
    devices = parallel.choose("shard_map", count=8, shard_items=shard_items)
    found = getattr(scaling, kind)(devices)
    assert found.gap < scaling.GOAL
    assert not found.looped


def test_only_the_search_of_a_threshold_speaks_inside_a_loop():
    devices = parallel.choose("shard_map", count=4, shard_items=True)
    found = scaling.sasrec(devices, alpha=1.5)
    assert {move.kind for move in found.looped} == {"all-reduce"}
    tokens = 4 * scaling.SASREC.batch * scaling.SASREC.max_length  # at most
    assert max(move.size for move in found.looped) <= 2 * 4 * tokens  # two numbers of each


@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0])
def test_the_split_loss_is_the_loss(alpha, x64):
    rng = np.random.default_rng(0)
    h, W = jnp.asarray(rng.normal(size=(21, 5))), jnp.asarray(rng.normal(size=(32, 5)))
    targets = jnp.asarray(np.where(np.arange(21) % 4, rng.integers(1, 27, 21), -1))
    devices = parallel.choose("shard_map", count=4)

    def whole(h, W):
        return linear_entmax_sum(h, W[1:27], jnp.maximum(targets - 1, -1), alpha, tau=0.7)

    def body(h, W):
        row = parallel.index("devices") * len(W) + jnp.arange(len(W))
        there = (row > 0) & (row < 27)  # the last device has no item at all

        def part(h, W):
            return sharded_entmax_sum(
                h, W, targets, alpha, axis="devices", where=there, tau=0.7, rows=8
            )

        value, (dh, dW) = jax.value_and_grad(part, (0, 1))(h, W)
        return parallel.sum_over_devices((value, dh), "devices"), dW

    specs = (False, True), ((False,) * 2, True)
    split = jax.jit(lambda *a: parallel.run_on_devices(devices, body, a, *specs))
    (value, dh), dW = split(h, W)
    wanted, gradients = jax.value_and_grad(whole, (0, 1))(h, W)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    for got, want in zip((dh, dW), gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-10)


def test_forms_are_chosen_by_name():
    assert parallel.choose() == parallel.ONE  # a CPU's simulated devices do not count
    assert parallel.choose("pmap").n == 8
    with pytest.raises(ValueError, match="parallel is one of auto, jit, pmap, shard_map"):
        parallel.choose("pjit")
    with pytest.raises(ValueError, match="9 devices asked for; there are 8"):
        parallel.choose("pmap", count=9)
    with pytest.raises(ValueError, match="up to 8 devices, not over 3"):
        parallel.choose("pmap", count=3, shard_items=True).rows(30)


PROGRAM = """
%body (a: f32[8]) -> f32[8] {
  %r = f32[8]{0} all-reduce(%a), to_apply=%add
}
%helper (a: f32[8]) -> f32[8] {
  %g = (f32[2,4]{1,0}, s32[3]{0}) all-gather(%a), dimensions={0}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%a), condition=%test, body=%body
  %c = f32[8]{0} call(%w), to_apply=%helper
  %s = bf16[5]{0} reduce-scatter(%c), dimensions={0}
}
"""


def test_exchanges_are_read_off_a_program():
    found = parallel.collectives(PROGRAM, 4)
    assert found == [
        parallel.Collective("all-reduce", 32, True),
        parallel.Collective("all-gather", 44, False),
        parallel.Collective("reduce-scatter", 40, False),
    ]
    assert [move.moved(4) for move in found] == [48, 33, 30]


def test_a_run_goes_on_with_other_devices(tmp_path, monkeypatch, quick):
    write_log(tmp_path / "data")
    config = sequences_config(tmp_path / "data", "sasrec_delta")
    with config.unlocked():
        config.model.dropout = 0.0
        config.checkpoint.every_steps = 2
    alone = runner.run(config, tmp_path / "alone")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.parallel, config.shard_items = "shard_map", True
    every = parallel.choose
    cut_run(monkeypatch, 5, config, tmp_path / "run")
    monkeypatch.setattr(parallel, "choose", functools.partial(every, count=2))
    results = runner.run(config, tmp_path / "run")
    for name, wanted in alone["metrics"].items():
        mean = pytest.approx(wanted["mean"], abs=1e-4, nan_ok=True)
        assert results["metrics"][name]["mean"] == mean, name
    losses = [
        [row["loss"] for row in report.read_rows(tmp_path / run / "metrics.jsonl")]
        for run in ("alone", "run")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


class Hosts:
    """Processes on this machine that run one command together."""

    def __init__(self, count, arguments, own=lambda host: []):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = f"--xla_force_host_platform_device_count={4 // count}"
        line = [sys.executable, "-m", "experiments.main", f"--coordinator={address}"]
        self.running = [
            subprocess.Popen(
                [*line, f"--hosts={count}", f"--host={host}", *arguments, *own(host)],
                cwd=pathlib.Path(__file__).parent.parent,
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.communicate()

    def end(self, code):
        """What each printed, once all have ended with this code."""
        printed = []
        for process in self.running:
            out, error = process.communicate(timeout=300)
            assert process.returncode == code, error[-2000:]
            printed.append(out)
        return printed


@pytest.mark.parametrize(
    ("hosts", "model", "stopped"),
    [
        (2, "semco", False),
        pytest.param(4, "semco", True, marks=THOROUGH),
        (4, "sasrec_delta", False),
        pytest.param(2, "sasrec_delta", True, marks=THOROUGH),
    ],
)
def test_hosts_run_one_experiment(hosts, model, stopped, tmp_path):
    if model == "semco":
        write_mmrec(tmp_path / "data", "clothing", ("text",))
        config = small(clothing.get_config(), tmp_path / "data")
        changes = {"model.hidden": 8, "model.out": 4, "train.batch_size": 19}
        name = "clothing.py"
    else:
        write_log(tmp_path / "data")
        config = sequences_config(tmp_path / "data", model, epochs=1)
        changes = {"model.max_length": 6, "model.dim": 4, "model.blocks": 1}
        changes |= {"model.dropout": 0.0, "train.batch_size": 5, "data.n_core": 2}
        name = f"movielens.py:{model}"
    changes |= {"seeds": (0,), "train.epochs": 12 if stopped else 2, "eval.cutoffs": (5,)}
    changes |= {"eval.figure": False, "data.root": str(tmp_path / "data")}
    changes |= {"checkpoint.every_steps": 3, "shard_items": True, "train.learning_rate": 1e-2}
    arguments = [f"--config=experiments/{name}", f"--workdir={tmp_path / 'many'}"]
    arguments += [f"--config.{field}={value}" for field, value in changes.items()]
    if stopped:  # one of them is asked to stop: all do, at the same step
        with Hosts(hosts, arguments) as started:
            while not [*(tmp_path / "many").glob("checkpoints/seed_0/6")]:
                assert all(process.poll() is None for process in started.running)
                time.sleep(0.05)
            started.running[-1].send_signal(signal.SIGTERM)
            started.end(75)
    with Hosts(hosts, arguments) as started:
        first, *others = started.end(0)
    assert ("goes on from step" in first) == stopped
    assert "results in" in first
    assert not any("seed 0" in printed for printed in others)

    with config.unlocked():
        config.update_from_flattened_dict(changes)
    runner.run(base.resolve(config), tmp_path / "one")
    together, alone = (
        json.loads((tmp_path / run / "results.json").read_text())["metrics"]
        for run in ("many", "one")
    )
    for metric, entry in alone.items():  # where nobody was asked, both are null
        close = pytest.approx(entry["mean"], abs=0.02) if entry["mean"] is not None else None
        assert together[metric]["mean"] == close, metric
    found, wanted = (
        {path.name.split("-")[0]: path for path in (tmp_path / run).glob("models/seed_0/*.npz")}
        for run in ("many", "one")
    )
    for file in wanted:
        with np.load(found[file]) as ours, np.load(wanted[file]) as theirs:
            # The bias of keys changes no attention: Adam makes something of its rounding.
            for array in (name for name in theirs if not name.endswith("key/bias")):
                np.testing.assert_allclose(
                    ours[array], theirs[array], rtol=2e-3, atol=2e-4, err_msg=array
                )
    listed = [sorted(p.name for p in (tmp_path / run).iterdir()) for run in ("many", "one")]
    assert listed[0] == listed[1]


@THOROUGH  # half a minute of waiting for a connection
def test_a_host_that_cannot_begin_ends_all(tmp_path):
    write_mmrec(tmp_path / "0", "clothing", ("text",))
    arguments = ["--config=experiments/clothing.py", f"--workdir={tmp_path / 'run'}"]
    with Hosts(2, arguments, lambda host: [f"--config.data.root={tmp_path / str(host)}"]) as both:
        said = [process.communicate(timeout=300)[1] for process in both.running]
        assert [process.returncode for process in both.running] == [2, 2]
    assert "error: another host has ended" in said[0]
    assert f"error: {tmp_path / '1'}: clothing.inter" in said[1]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def three_hosts(monkeypatch):
    """Calls a function on three hosts, which are threads: host, argument -> result of each."""
    here, barrier, said = threading.local(), threading.Barrier(3, timeout=60), [None] * 3

    def allgather(x):
        said[here.number] = np.array(x)
        barrier.wait()
        found = np.stack(said)
        barrier.wait()
        return found

    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: here.number)

    def on_hosts(function, *arguments):
        def on_host(number, *own):
            here.number = number
            try:
                return function(*own)
            except DataError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            return list(pool.map(on_host, range(3), *arguments))

    return on_hosts


def test_what_each_host_has_reaches_all(three_hosts, monkeypatch):
    monkeypatch.setattr(parallel, "_PIECE", 64)  # bytes: many pieces
    rng = np.random.default_rng(0)
    for dtype, shape in [(np.int64, ()), (np.float32, (3,)), (bool, (2, 2)), (np.int64, (9,))]:
        own = [(rng.random((n, *shape)) * 2**40).astype(dtype) for n in (5, 0, 17)]
        for found in three_hosts(parallel.all_gather_hosts, own):
            for theirs, wanted in zip(found, own, strict=True):
                assert theirs.dtype == wanted.dtype
                np.testing.assert_array_equal(theirs, wanted)


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_hosts_read_a_share_of_the_interactions_each(end, three_hosts, tmp_path, monkeypatch):
    parsed = []

    def counted(source, *rest, of=text_tables.pd.read_csv, **options):
        table = of(source, *rest, **options)
        parsed.append(len(table))
        return table

    monkeypatch.setattr(text_tables.pd, "read_csv", counted)

    def read(*arguments):
        hosts = text_tables.Hosts(3, jax.process_index(), parallel.all_gather_hosts)
        return text_tables.read_integers(*arguments, hosts=hosts)

    path, rng = tmp_path / "toy.inter", np.random.default_rng(1)
    for rows in (1, 2, 3, 50):
        ids = rng.integers(0, 10 ** rng.integers(1, 12, (rows, 2)))
        lines = ["userID\titemID", *("\t".join(map(str, row)) for row in ids)]
        path.write_bytes((end or "\n").join(lines).encode() + end.encode())
        del parsed[:]
        fields = ("userID", "itemID")
        for found in three_hosts(read, [path] * 3, ["\t"] * 3, [fields] * 3):
            np.testing.assert_array_equal(np.stack([found[name] for name in fields], 1), ids)
        assert sum(parsed) == rows
        assert max(parsed) < 0.6 * rows + 1
    with open(path, "a") as file:
        file.write("\n7\tseven\n" if not end else "7\tseven\n")
    for found in three_hosts(read, [path] * 3, ["\t"] * 3, [fields] * 3):
        assert isinstance(found, DataError)
        assert f"{path}: line 52: itemID 'seven' is not an integer" in str(found)


@pytest.mark.parametrize("hosts", [2, 3, 7])
def test_shares_of_hosts_are_all_rows_once(hosts, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    for count, multiple in [(0, 4), (3, 4), (40, 4), (41, 1)]:
        rows = []
        for host in range(hosts):
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            first, end = parallel.host_shard(count, multiple)
            assert first % multiple == 0 or first == count
            rows += range(first, end)
            assert {n for n in range(9) if parallel.is_owner(n)} == set(range(host, 9, hosts))
        assert rows == list(range(count))
