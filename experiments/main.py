"""Trains, evaluates and reports: the one entry point.

python -m experiments.main --config=experiments/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done; 2 an error, said in one line; 75 stopped by SIGTERM and 130 by Ctrl-C, with all
that was done saved. After 75, 130, kill -9 or a loss of power the same command goes on, to the same
bits; after an error too, once its cause is gone.

Several hosts: the same command on each, with --coordinator, --hosts and --host, and a --workdir
that all of them see. The first writes the reports.
"""

import contextlib
import errno
import os
import pathlib
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from experiments import config as configs
from experiments import method as methods

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="FILE.py[:MODEL]")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results; made where it is absent.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run of another config in --workdir.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Of several hosts, HOST:PORT of the first; or cluster: what Slurm, Open MPI or Cloud TPU say.",
)
HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts work together.", lower_bound=1)
HOST = flags.DEFINE_integer("host", None, "The number of this one, from 0.", lower_bound=0)

EXAMPLE = "--config=experiments/quickstart.py --workdir=runs/quickstart"

# Exit code after SIGTERM (EX_TEMPFAIL): try again, the same command goes on.
STOPPED = 75
# After Ctrl-C, as the shell has it.
INTERRUPTED = 128 + signal.SIGINT

Job = Callable[[config_dict.ConfigDict, pathlib.Path], Any]


def stop(message: object) -> int:
    """Says in one line what is wrong; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Absl's parser, except that a bad flag ends in one line and the names that would be right."""
    try:
        rest = flags.FLAGS(list(argv))
        if flags.FLAGS["verbosity"].using_default_value:
            # Before absl makes it INFO: JAX and Orbax then tell what they are about, at length.
            logging.set_verbosity(logging.WARNING)
            # And what Orbax raises it logs too, with a traceback per thread.
            logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
        sys.excepthook = _unless_known(sys.__excepthook__)
        sys.unraisablehook = _unless_known(sys.__unraisablehook__)
        # A config file that cannot be loaded says so when its fields are first asked for.
        if CONFIG.value is not None:
            configs.names(CONFIG.value)
        return rest
    except KeyboardInterrupt:
        sys.exit(interrupted())
    except Exception as error:  # of any type: a config file is the user's code
        stop(_wrong_config(argv) or _one_line(error))
        sys.exit(2)


def _wrong_config(argv: Sequence[str]) -> str | None:
    """What is wrong with the config file, or with the first flag of a field that it lacks.

    None where it is neither.
    """
    # Parsing stopped half-way: once more without overrides, which config_flags reads off sys.argv.
    sys.argv = [argv[0], *(a for a in argv[1:] if a.startswith("--config="))]
    for argument in sys.argv[1:]:
        path = argument.partition("=")[2].partition(":")[0]
        if not pathlib.Path(path).is_file():
            return f"--config: {path}: no such file; name a config such as {EXAMPLE.split()[0][9:]}"
    try:
        flags.FLAGS(sys.argv)
        config = CONFIG.value
    except (flags.Error, methods.ConfigError, OSError):
        return None  # says enough
    except SyntaxError as error:
        return f"--config: {error.filename}, line {error.lineno}: {error.msg}"
    except Exception as error:
        return f"--config: {_place_of(error)}: {type(error).__name__}: {_one_line(error)}"
    if config is None:
        return None
    if not isinstance(config, config_dict.ConfigDict):
        return (
            f"--config: get_config returns a {type(config).__name__}; it has to return what "
            "experiments.config.get_config does"
        )
    known = configs.names(config)
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config.") and name not in known:
            return configs.unknown_field(name.removeprefix("config."), config)
    return None


def _place_of(error: Exception) -> str:
    """The file and line that raised an error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _unless_known(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of Python's, less what TensorStore prints from its threads after a failed write.

    It then calls back into an event loop that Orbax has closed. The failure itself is raised.
    """

    def quiet(*told: Any) -> None:
        # Kind, error and traceback; or, where nothing can be raised, one value that has them.
        error = told[1] if len(told) > 1 else told[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(*told)

    return quiet


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    if len(lines) > 2:  # a traceback or a list of attempts: what happened comes last
        lines = ["--config:", re.sub(r"^[\w.]+Error: ", "", lines[-1])]
    line = " ".join(lines).replace("\\", "")
    # A KeyError is quoted as a whole; a name at the end is too, and keeps its quotes.
    return (line[1:-1] if line[:1] == line[-1:] == "'" else line) or repr(error)


def command(argv: Sequence[str], job: Job) -> int:
    """Calls the job with the config and the folder of the flags; returns the exit code.

    What a user can mend ends in one line.
    """
    if len(argv) > 1:
        return stop(f"argument {argv[1]!r} is not understood; flags begin with --")
    if CONFIG.value is None:
        return stop(f"--config is required; for example {EXAMPLE}")
    if not WORKDIR.value:
        return stop(f"--workdir is required; for example {EXAMPLE}")
    before = signal.signal(signal.SIGTERM, _asked_to_stop)
    try:
        from jaxcold.types import MissingDataError

        try:
            job(CONFIG.value, pathlib.Path(WORKDIR.value))
        except MissingDataError as error:
            return stop(f"{error}{_header(CONFIG.value)}")
        except (ValueError, FloatingPointError) as error:
            return stop(error)
        except OSError as error:
            return stop(of_system(error))
        except RuntimeError as error:  # what JAX raises when a host does not answer
            if COORDINATOR.value is None:
                raise
            return stop(f"another host has ended, or cannot be reached: {_one_line(error)}")
    except configs.StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED if stopped.signal_number == signal.SIGINT else STOPPED
    except KeyboardInterrupt:  # where there is no state of a training to save
        return interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def answer(job: Callable[[], None], *wrong: type[Exception]) -> int:
    """Calls a job without a config; returns the exit code.

    Args:
        job: what the command does.
        wrong: errors that a user can mend, each of which ends in one line.
    """
    try:
        job()
    except wrong as error:
        return stop(error)
    except OSError as error:
        return stop(of_system(error))
    except KeyboardInterrupt:
        return interrupted()
    return 0


def _header(config: config_dict.ConfigDict) -> str:
    """The header of a config file, for data sets that it is about: not for one of another name."""
    shipped = config.get("about_dataset", "") == config.data.name
    return f"\n\n{config.about.strip()}" if shipped else ""


def interrupted() -> int:
    """Says that Ctrl-C has ended the command; returns the exit code."""
    print("interrupted; the same command goes on", file=sys.stderr)
    return INTERRUPTED


def _asked_to_stop(*_: object) -> None:
    """SIGTERM where there is no state of a training to save; `experiments.runner` has its own."""
    raise configs.StoppedError("stopped; the same command goes on")


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Says warnings on standard error without the place in our code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def of_system(error: OSError) -> str:
    """The file and what the system says of it, with a remedy where there is one."""
    if error.errno is None:
        return str(error)
    said = os.strerror(error.errno)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        f"{error.filename}: {said}" if error.filename else said
    ) + "; make room, and the same command goes on" * full


def _train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    resolved = configs.resolve(config)
    _start_hosts()
    from experiments import runner  # slow to import: the flags are known to be good now

    runner.run(resolved, workdir, overwrite=OVERWRITE.value)


def _start_hosts() -> None:
    """Joins the hosts that the flags name.

    Raises:
        ConfigError: naming the flag that is wrong.
    """
    where, hosts, host = COORDINATOR.value, HOSTS.value, HOST.value
    if where is None:
        if hosts is not None or host is not None:
            raise methods.ConfigError("--hosts and --host need --coordinator=HOST:PORT")
        return
    from jaxcold import parallel

    if where == "cluster":
        if hosts is not None or host is not None:
            raise methods.ConfigError(
                "--coordinator=cluster knows --hosts and --host; leave them out"
            )
        parallel.initialize_hosts()
        return
    if hosts is None or host is None or host >= hosts or not re.fullmatch(r"[^:]+:\d+", where):
        raise methods.ConfigError(
            f"--coordinator={where}: give HOST:PORT, or cluster, with --hosts=N and --host from 0 "
            "to N - 1"
        )
    parallel.initialize_hosts(where, hosts, host)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment of the flags; returns the exit code."""
    code = command(argv, _train)
    if code in (2, INTERRUPTED) and COORDINATOR.value is not None:
        # Without a farewell, for which this host would wait for those that wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
