"""Downloads over a server that misbehaves, and citeulike-a from its raw files."""

import hashlib
import http.server
import re
import socket
import threading

import numpy as np
import pytest
from scipy import sparse

from jaxcold.data import load
from jaxcold.data.sources import citeulike
from jaxcold.data.sources.download import fetch
from jaxcold.types import DataError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; obeys ``server.ranges`` and drops the first ``server.cuts``."""

    def do_GET(self):
        server = self.server
        server.seen.append(self.headers.get("Range"))
        if server.failing or self.path not in server.files:
            return self.send_error(503 if server.failing else 404)
        body, start = server.files[self.path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and server.ranges:
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            rest = rest[: server.cut_after]
        self.wfile.write(rest)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on loopback that holds BODY at /file."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.seen, server.ranges, server.failing = {"/file": BODY}, [], True, False
        server.cuts, server.cut_after = 0, 100_000
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refusal(url, path, sha256=SHA256):
    """The one-line message of a download that must fail, leaving no file."""
    with pytest.raises(DataError) as error:
        fetch(url, path, sha256)
    message = str(error.value)
    assert "\n" not in message
    assert url in message
    assert str(path) in message
    return message


def test_a_file_arrives_whole_and_only_once(server, tmp_path):
    path = tmp_path / "deep" / "folder" / "file"
    assert fetch(f"{server.url}/file", path, SHA256) == path
    assert path.read_bytes() == BODY
    assert fetch(f"{server.url}/file", path, SHA256) == path
    assert server.seen == [None]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_cut_connection_is_tried_again(server, tmp_path):
    server.cuts = 2
    fetch(f"{server.url}/file", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY
    assert len(server.seen) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_connection_that_is_always_cut_ends_in_an_error_and_leaves_nothing(server, tmp_path):
    server.cuts, server.cut_after = 10**6, 1000
    refusal(f"{server.url}/file", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) < 10


def test_a_changed_file_is_refused_and_leaves_nothing(server, tmp_path):
    server.files["/file"] = BODY[:-1] + b"?"
    message = refusal(f"{server.url}/file", tmp_path / "file")
    assert f"SHA-256 {SHA256[:12]}" in message
    assert list(tmp_path.iterdir()) == []


def test_an_error_page_is_not_a_file(server, tmp_path):
    message = refusal(f"{server.url}/other", tmp_path / "file")
    assert "HTTP 404" in message
    assert "put it at" in message
    assert not (tmp_path / "file").exists()
    server.failing = True
    assert "HTTP 503" in refusal(f"{server.url}/file", tmp_path / "file")


def test_no_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
        message = refusal(url, tmp_path / "file")
    assert "no connection" in message
    assert f"put it at {tmp_path / 'file'}" in message
    assert not (tmp_path / "file").exists()


def test_a_file_of_another_hash_is_neither_trusted_nor_replaced(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    assert "delete the file" in refusal(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert server.seen == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, server):
    (tmp_path / "taken").write_bytes(b"")
    message = refusal(f"{server.url}/file", tmp_path / "taken" / "file")
    assert "cannot be written" in message
    assert "data.root" in message


def test_several_downloads_at_once_give_one_file(server, tmp_path):
    def download():
        fetch(f"{server.url}/file", tmp_path / "file", SHA256)

    threads = [threading.Thread(target=download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == BODY
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# --- citeulike-a -----------------------------------------------------------------------------

USERS, ITEMS, TAGS = 12, 30, 20


def write_raw(folder, seed=0):
    """Four small files in the published layout; items 0 to 3 have no tags, 28 and 29 no links."""
    rng = np.random.default_rng(seed)

    def write(name, rows):
        lines = [" ".join(map(str, [len(row), *row])) for row in rows]
        (folder / name).write_text("\n".join(lines))  # the published files end without one

    folder.mkdir(parents=True, exist_ok=True)
    libraries = rng.random((USERS, ITEMS)) < 0.5
    libraries[rng.integers(USERS, size=ITEMS), np.arange(ITEMS)] = True
    tagged = rng.random((ITEMS, TAGS)) < 0.3
    tagged[4:, 0], tagged[:4] = True, False
    linked = rng.random((ITEMS, ITEMS)) < 0.1
    linked[np.arange(27), np.arange(1, 28)] = True
    linked |= linked.T
    linked[28:], linked[:, 28:] = False, False
    for name, table in (
        ("users.dat", libraries),
        ("item-tag.dat", tagged),
        ("citations.dat", linked),
    ):
        write(name, [np.flatnonzero(row) for row in table])
    (folder / "tags.dat").write_text("".join(f"tag{t}\n" for t in range(TAGS)))
    return libraries


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Folder of a small citeulike-a, with the caches and downloads of the process under tmp."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXCOLD_DATA", raising=False)
    write_raw(tmp_path / "data" / "raw")
    return tmp_path / "data" / "raw"


def read(raw, tmp_path, **kwargs):
    return citeulike.read(raw.parent, tmp_path / "cache", **kwargs)


def test_the_raw_files_read_as_written(raw, tmp_path):
    libraries = write_raw(raw)
    interactions, content = read(raw, tmp_path)
    np.testing.assert_array_equal(interactions.pairs(), np.argwhere(libraries))
    assert (interactions.num_users, interactions.num_items) == (USERS, ITEMS)
    assert interactions.time is None
    assert {mode: table.shape for mode, table in content.tables.items()} == {
        "text": (ITEMS, 300),
        "graph": (ITEMS, 128),
    }
    assert all(present.all() for present in content.present.values())


def test_items_without_tags_or_links_have_rows_of_zeros_and_may_lack_the_mode(raw, tmp_path):
    content = read(raw, tmp_path)[1]
    for mode, absent in (("text", [0, 1, 2, 3]), ("graph", [28, 29])):
        assert np.flatnonzero(~content.tables[mode].any(axis=1)).tolist() == absent
        missing = read(raw, tmp_path, missing_modes=True)[1].present[mode]
        assert np.flatnonzero(~missing).tolist() == absent
    with pytest.raises(DataError, match=r"item 0 has no content .*missing_modes=False"):
        read(raw, tmp_path, missing_modes=True, modes=("text",))


def test_items_with_the_same_tags_have_the_same_text(raw, tmp_path):
    path = raw / "item-tag.dat"
    lines = path.read_text().split("\n")
    lines[9] = lines[8]
    path.write_text("\n".join(lines))
    text = read(raw, tmp_path, modes=("text",))[1].tables["text"]
    np.testing.assert_allclose(text[8], text[9], atol=1e-6)
    assert np.linalg.norm(text[8] - text[10]) > 0.1


def test_full_rank_reductions_keep_the_geometry_of_what_they_reduce():
    """With as many dimensions as there are columns, all inner products survive."""
    rng = np.random.default_rng(0)
    links = sparse.csr_matrix(np.triu(rng.random((40, 40)) < 0.2, 1).astype(np.float32))
    graph = ((links + links.T).toarray() > 0) + np.eye(40)
    scale = 1 / np.sqrt(graph.sum(axis=1))
    normalised = scale[:, None] * graph * scale
    table = citeulike.graph_features(links)
    np.testing.assert_allclose(table @ table.T, normalised @ normalised.T, atol=1e-5)


def test_computed_content_is_kept_and_recomputed_when_the_source_changes(raw, tmp_path):
    first = read(raw, tmp_path)[1].tables
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 2
    marked = np.load(kept[1])
    np.save(kept[1], marked + 1)
    np.testing.assert_array_equal(read(raw, tmp_path)[1].tables["text"], first["text"] + 1)

    kept[1].write_bytes(kept[1].read_bytes()[:100])
    np.testing.assert_array_equal(read(raw, tmp_path)[1].tables["text"], first["text"])

    write_raw(raw, seed=1)
    assert np.abs(read(raw, tmp_path)[1].tables["text"] - first["text"]).max() > 0.01
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_content_is_recomputed_when_one_tag_is_replaced_by_another(raw, tmp_path):
    first = read(raw, tmp_path, modes=("text",))[1].tables["text"]
    path = raw / "item-tag.dat"
    lines = path.read_text().split("\n")
    count, *tags = lines[4].split()
    tags[-1] = next(str(t) for t in range(TAGS) if str(t) not in tags)
    lines[4] = " ".join([count, *tags])
    path.write_text("\n".join(lines))
    assert np.abs(read(raw, tmp_path, modes=("text",))[1].tables["text"] - first).max() > 0.01


def test_a_cache_that_cannot_be_written_costs_time_only(raw, tmp_path):
    (tmp_path / "cache").write_bytes(b"in the way")
    assert len(read(raw, tmp_path)[1].tables) == 2


def test_missing_files_are_downloaded_and_checked(raw, tmp_path, server, monkeypatch):
    server.files = {f"/{path.name}": path.read_bytes() for path in raw.iterdir()}
    hashes = {
        name: hashlib.sha256(server.files[f"/{name}"]).hexdigest() for name in citeulike.FILES
    }
    monkeypatch.setattr(citeulike, "FILES", hashes)
    (raw / "users.dat").unlink()
    (raw / "tags.dat").unlink()
    read(raw, tmp_path, url=server.url)
    assert len(server.seen) == 2

    empty = tmp_path / "empty"
    interactions, _ = citeulike.read(empty, tmp_path / "cache", url=server.url)
    assert interactions.num_users == USERS
    assert sorted(path.name for path in (empty / "raw").iterdir()) == sorted(citeulike.FILES)


def test_citeulike_loads_by_name_from_raw_files(raw):
    dataset = load("citeulike-a", raw.parent, content="raw", modes=("graph", "text"))
    assert list(dataset.content.tables) == ["graph", "text"]
    assert load("citeulike-a", raw, content="raw").interactions.num_items == ITEMS


RAW = {
    "count": ("users.dat", lambda s: "99 " + s.split(" ", 1)[1], ["line 1", "99 are announced"]),
    "blank line": ("users.dat", lambda s: "\n" + s, ["line 1", "blank"]),
    "text": ("users.dat", lambda s: "x" + s, ["line 1", "something but integers"]),
    "negative": ("users.dat", lambda s: "1 -1\n" + s, ["line 1", "id -1 is outside the 30 rows"]),
    "no such item": ("users.dat", lambda s: "1 30\n" + s, ["line 1", "id 30", "item-tag.dat"]),
    "no such tag": ("item-tag.dat", lambda s: "1 20\n" + s, ["line 1", "id 20", "tags.dat"]),
    "twice": ("users.dat", lambda s: "3 5 6 5\n" + s, ["line 1", "id 5 is there twice"]),
    "empty": ("users.dat", lambda s: "", ["is empty"]),
    "no tags": ("tags.dat", lambda s: "", ["is empty"]),
    "binary": ("users.dat", lambda s: "\xff" + s, ["not plain text"]),
    "item without reader": ("users.dat", lambda s: "1 0", ["item 1 has no interaction"]),
    "user without item": ("users.dat", lambda s: "0\n" + s, ["user 0 has no interaction"]),
    "rows": ("citations.dat", lambda s: s + "\n0", ["31 rows where item-tag.dat has 30"]),
}


@pytest.mark.parametrize("case", RAW)
def test_a_bad_raw_file(raw, tmp_path, case):
    name, spoil, expected = RAW[case]
    path = raw / name
    path.write_text(spoil(path.read_text()), encoding="latin-1")
    with pytest.raises(DataError) as error:
        read(raw, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for words in (str(path), "download", *expected):
        assert words in message


def test_unknown_modes_are_refused_with_the_choices(raw, tmp_path):
    with pytest.raises(DataError, match=r"'image'.*of text, graph"):
        read(raw, tmp_path, modes=("image",))


def test_the_published_files_give_the_interactions_of_the_inter_file(
    data_root, tmp_path, monkeypatch
):
    folder = data_root / "citeulike-a"
    for name, sha256 in citeulike.FILES.items():
        assert hashlib.sha256((folder / "raw" / name).read_bytes()).hexdigest() == sha256
    monkeypatch.setattr(citeulike, "TEXT_WIDTH", 4)  # the full widths take seconds
    monkeypatch.setattr(citeulike, "GRAPH_WIDTH", 4)
    interactions, content = citeulike.read(folder, tmp_path)
    table = load("citeulike-a", folder, mmap=True).interactions
    np.testing.assert_array_equal(interactions.pairs(), table.pairs())
    empty = {mode: ~features.any(axis=1) for mode, features in content.tables.items()}
    assert empty["text"].sum() == 3461
    assert empty["graph"].sum() == 5579
    assert (empty["text"] & empty["graph"]).sum() == 2161
