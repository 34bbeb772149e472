"""Several host processes: one run of all of them, and what they exchange."""

import concurrent.futures
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
import numpy as np
import pytest
from jax.experimental import multihost_utils
from safetensors.numpy import load_file
from test_main import small
from test_parallel import THOROUGH
from test_sequential_runs import config_of as sequences_config

from experiments import clothing, runner
from experiments import config as base
from experiments.bench.toy import write_log, write_mmrec
from jaxcold import parallel
from jaxcold.data import text_tables
from jaxcold.parallel import hosts as hosts_module
from jaxcold.types import DataError


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
        load_file(next((tmp_path / run).glob("models/seed_0/*.safetensors")))
        for run in ("many", "one")
    )
    assert found.keys() == wanted.keys()
    # The bias of keys changes no attention: Adam makes something of its rounding.
    for name in (name for name in wanted if not name.endswith("key/bias")):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-3, atol=2e-4, err_msg=name)
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
    monkeypatch.setattr(hosts_module, "_CHUNK_BYTES", 64)  # many chunks
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
