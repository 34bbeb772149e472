"""The entry point against the user's mistakes and impatience: one line, the right exit code."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_main import ROOT, entry, small

from experiments import clothing, finished, main, movielens, runner
from experiments import config as base
from experiments import workdir as workdirs
from experiments.bench.toy import write_log, write_mmrec
from jaxcold.reporting.progress import Progress

BROKEN = {
    "syntax": ("import os\n\ndef get_config(:\n", "line 3: invalid syntax"),
    "raises": (
        "def get_config(model=None):\n    raise RuntimeError('no\\nluck')\n",
        "line 2: RuntimeError: no luck",
    ),
    "divides": ("def get_config(model=None):\n    return 1 / 0\n", "ZeroDivisionError"),
    "dictionary": (
        "def get_config(model=None):\n    return {'model': {'alpha': 2}}\n",
        "get_config returns a dict; it has to return what experiments.config.get_config does",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_file_ends_in_one_line(name, tmp_path):
    text, message = BROKEN[name]
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    arguments = ["--config.model.alpha=1"] if name in ("raises", "dictionary") else []
    code, error = entry(*arguments, config=str(path), workdir=tmp_path / "run")
    assert code == 2
    assert message in error
    assert name == "dictionary" or str(path) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_names_the_flags():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "--workdir" in done.stdout
    assert "Exit codes" in done.stdout
    assert not done.stderr


def test_missing_data_of_another_name_do_not_print_the_header_of_the_file(tmp_path):
    flags = [f"--config.data.root={tmp_path}", "--config.data.name=mine"]
    flags += ["--config.model.tau=5", "--config.model.l2=0"]
    code, error = entry(*flags, workdir=tmp_path / "run")
    assert code == 2
    assert "mine.inter" in error
    assert "Paper" not in error
    assert "published" not in error
    assert len(error.strip().splitlines()) == 1


@pytest.fixture
def config(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    config = small(clothing.get_config(), tmp_path / "data")
    with config.unlocked():
        config.train.batch_size = 16
        config.eval.figure = False
    return base.resolve(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.batch_size", 10**7), ("model.hidden", 10**9), ("model.out", 10**9)],
)
def test_what_does_not_fit_into_memory_is_refused_with_its_size(
    field, value, config, tmp_path, monkeypatch, capsys
):
    """From the shapes alone: nothing of that size is compiled or made."""
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    assert in_process(monkeypatch, config, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"config.{field}={value}: a training needs at least " in error
    assert " GB; lower config." in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_far_beyond_the_examples_is_refused_at_once(config, tmp_path):
    with config.unlocked():
        config.train.batch_size = 10**8
    with pytest.raises(ValueError, match=r"batch_size=100000000 is beyond the \d+ training"):
        runner.run(config, tmp_path / "run")


def test_negatives_that_do_not_fit_into_memory_are_refused(tmp_path):
    write_log(tmp_path / "data")
    config = movielens.get_config("sasrec_frozen")
    with config.unlocked():
        config.data.root = str(tmp_path / "data")
        config.model.update(max_length=6, dim=4, loss="sampled", negatives=10**9)
    with pytest.raises(base.ConfigError, match=r"config\.model\.negatives=1000000000: .* GB"):
        runner.run(base.resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"metrics": []}', "{", ""])
def test_damaged_results_are_named(content, config, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(base.plain(config)))
    (run / "results.json").write_text(content)
    assert in_process(monkeypatch, config, run) == 2
    error = capsys.readouterr().err
    assert str(run / "results.json") in error
    assert "delete it, and the same command evaluates again" in error
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(base.ConfigError, match="not a finished run"):
        finished.read([run])


def send_after(monkeypatch, steps, *numbers):
    """Sends this process signals after that many steps."""
    left = [steps]
    advance = Progress.advance

    def counted(self, items, loss):
        advance(self, items, loss)
        left[0] -= 1
        if left[0] == 0:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "advance", counted)


class Values:
    """A flag of a value."""

    def __init__(self, value):
        self.value = value


def in_process(monkeypatch, config, workdir):
    """Runs the command without a process of its own; returns the exit code."""
    monkeypatch.setattr(main, "CONFIG", Values(config))
    monkeypatch.setattr(main, "WORKDIR", Values(str(workdir)))
    return main.command(["main"], lambda c, folder: runner.run(c, folder))


def test_interrupted_runs_say_so_and_go_on(config, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        send_after(patch, 3, signal.SIGINT)
        assert in_process(patch, config, run) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("stopped at step ")
    assert line.endswith("of seed 0; the same command goes on")
    with monkeypatch.context() as patch:  # the second interrupts at once
        send_after(patch, 1, signal.SIGINT, signal.SIGINT)
        assert in_process(patch, config, run) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with monkeypatch.context() as patch:
        send_after(patch, 1, signal.SIGTERM)
        assert in_process(patch, config, run) == 75
    capsys.readouterr()
    assert in_process(monkeypatch, config, run) == 0
    assert "goes on from step" in capsys.readouterr().out
    assert workdirs.finished_results(run, config) is not None


def test_an_interrupted_loading_leaves_no_folder(config, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "make_setup", interrupt)
    assert in_process(monkeypatch, config, tmp_path / "run") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"
    assert not (tmp_path / "run").exists()


def test_one_run_at_a_time_in_a_folder(config, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with workdirs.Lock(run) as lock:
        lock.take()
        lock.take()  # again by the same run
        (run / "metrics.jsonl").write_text("of the other run\n")
        assert in_process(monkeypatch, config, run) == 2
        error = capsys.readouterr().err
        assert "another run is at work there" in error
        assert len(error.strip().splitlines()) == 1
        assert (run / "metrics.jsonl").read_text() == "of the other run\n"
    with workdirs.Lock(run) as lock:  # let go
        lock.take()


def test_only_the_primary_host_locks_the_folder_of_all(config, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(runner.workdirs.Lock, "take", lambda self: taken.append(self.workdir))
    monkeypatch.setattr(runner.parallel, "is_primary", lambda: False)
    monkeypatch.setattr(runner.seeds, "train", lambda setup, seed: taken.append("trained") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run(config, tmp_path / "run")
    assert taken[-1] == "trained"
    assert tmp_path / "run" not in taken
