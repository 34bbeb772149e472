"""Files that are replaced whole, and outlast a loss of power once they are."""

import errno
import os
import stat

import pytest

from jaxcold import files
from jaxcold.estimators import artifact


@pytest.fixture
def events(monkeypatch):
    """What reaches the disk, in order: the name and kind of what is synced, and renames."""
    log = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        log.append(("sync", kind, os.fstat(handle).st_ino))
        fsync(handle)

    def moved(change, name):
        def move(source, target):
            change(source, target)
            log.append((name, os.path.basename(target)))

        return move

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace, "replace"))
    monkeypatch.setattr(os, "rename", moved(rename, "rename"))
    return log


def test_the_folder_is_synced_after_the_file_is_replaced(tmp_path, events):
    path = tmp_path / "a.json"
    files.write_atomic(path, b"old")
    del events[:]
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry[:2] for entry in events] == [
        ("sync", "file"),
        ("replace", "a.json"),
        ("sync", "folder"),
    ]
    assert events[0][2] == path.stat().st_ino
    assert events[2][2] == tmp_path.stat().st_ino


def test_an_artifact_is_on_disk_before_it_is_named(tmp_path, events):
    artifact.write(tmp_path / "model", {}, {"arrays.npz": b"x"})
    names = [entry for entry in events if entry[0] != "sync"]
    assert [name for _, name in names[1:]] == ["model.json", "model"]
    assert events[-2] == ("rename", "model")
    assert events[-1] == ("sync", "folder", tmp_path.stat().st_ino)


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_a_folder(number, passes, tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        files.sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output"):
            files.sync_folder(tmp_path)
