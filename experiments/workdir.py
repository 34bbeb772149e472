"""The folder of a run: its files, whose it is, and what has to go."""

import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from experiments.config import differences, identity, plain
from experiments.method import ConfigError
from jaxcold.files import clear_partial, write_atomic

CONFIG_FILE, ROWS_FILE, SPLIT_FILE = "config.json", "metrics.jsonl", "split.npz"
RESULTS_FILE, USERS_FILE, ITEMS_FILE = "results.json", "per_user.npz", "per_item.npz"
CHECKPOINTS = "checkpoints"
INPUTS_FILE = "inputs.json"  # file that the run read -> its SHA-256
REPORTS = (USERS_FILE, ITEMS_FILE, "results.md", "summary.png")
BEST, DIVERGED, LOCK = "best_checkpoints", "diverged_seed_*.json", "run.lock"


def check(workdir: pathlib.Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Whether a run of the config may use the folder; nothing is written.

    Raises:
        ConfigError: saying why not; of a run with another config, which fields differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--workdir={workdir}: {existing} may not be written; name another folder"
        )
    changed = differences(identity(config), identity(config_of(workdir) or config))
    if changed and not overwrite:
        raise ConfigError(
            f"--workdir={workdir} holds a run with another config ({', '.join(changed[:3])} "
            "differ); name another folder, or pass --overwrite to replace it"
        )


def check_inputs(workdir: pathlib.Path, sources: Mapping[str, str]) -> None:
    """Whether the data are those that the run of the folder was begun with.

    Args:
        workdir: of an unfinished run.
        sources: file -> SHA-256, of the data that were read now.

    Raises:
        ConfigError: naming the first file that is another.
    """
    try:
        begun = json.loads((workdir / INPUTS_FILE).read_text())
    except (OSError, ValueError):
        begun = {}
    changed = differences(sources, begun if isinstance(begun, dict) else {})
    if changed:
        raise ConfigError(
            f"--workdir={workdir}: the data are not those that this run was begun with "
            f"({', '.join(changed[:3])}); name another folder, or pass --overwrite to begin again"
        )


class BusyError(ConfigError):
    """Another process is at work in a folder."""


class Lock:
    """One run at a time in a folder: held from `take` to the end of the ``with`` block.

    The kernel gives up the lock of a process that dies, however it dies.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self._file: int | None = None

    def take(self) -> None:
        """Makes the folder and locks it; again by the same run is no change.

        Raises:
            BusyError: if another run is at work there.
            ConfigError: if the folder cannot be written.
        """
        if self._file is not None:
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"--workdir={self.workdir}: another run is at work there; wait for it, or name "
                "another folder"
            ) from None
        except OSError as error:
            raise _unwritable(self.workdir, error) from None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)


def _unwritable(workdir: pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--workdir={workdir}: cannot be written ({error.strerror}); name another folder, or make "
        "room"
    )


def begin(workdir: pathlib.Path, config: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Deletes the files of an earlier run, never others, and claims the folder.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # The config first: a run that is half deleted is none to go on with.
        for name in (CONFIG_FILE, INPUTS_FILE, ROWS_FILE, RESULTS_FILE, *REPORTS):
            (workdir / name).unlink(missing_ok=True)
        for folder in ("tb", "models", BEST):
            shutil.rmtree(workdir / folder, ignore_errors=True)
        remove_temporary(workdir)
        write_atomic(workdir / INPUTS_FILE, (json.dumps(dict(sources), indent=2) + "\n").encode())
        write_atomic(workdir / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise _unwritable(workdir, error) from None


def remove_temporary(workdir: pathlib.Path) -> None:
    """Deletes what only an unfinished run needs; the trained models are in models/."""
    shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)
    for path in workdir.glob(DIVERGED):
        path.unlink(missing_ok=True)
    remove_partial(workdir)


def remove_partial(workdir: pathlib.Path) -> None:
    """Deletes what killed processes were writing; checkpoints clear their own folder."""
    for folder in (workdir, workdir / "models", workdir / BEST):
        clear_partial(folder)


def config_of(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config of the run that the folder holds, finished or not."""
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def finished_results(
    workdir: pathlib.Path, config: config_dict.ConfigDict
) -> dict[str, Any] | None:
    """results.json of a finished run of that config; None where there is none.

    Raises:
        ConfigError: if it is damaged.
    """
    path, written = workdir / RESULTS_FILE, config_of(workdir)
    if written is None or identity(written) != identity(plain(config)) or not path.exists():
        return None
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["metrics"], dict):
            raise ValueError("it has no metrics")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error}); delete it, and the same command evaluates again"
        ) from None
    return results


def hash_of(config: config_dict.ConfigDict) -> str:
    """SHA-256 of a run's identity, which a checkpoint remembers."""
    fields = json.dumps(identity(plain(config)), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()


def copy_checkpoint(checkpoint: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies a checkpoint into a folder of its own, whole or not at all.

    Raises:
        OSError: naming the folder, if it cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
    try:
        shutil.copytree(checkpoint, partial / checkpoint.name)
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed later than here
        partial.rename(folder)
    except shutil.Error as error:  # a list of (from, to, why)
        raise OSError(f"{folder}: cannot be written ({error.args[0][0][2]}); make room") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
