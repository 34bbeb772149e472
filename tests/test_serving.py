"""The service in process: right answers to requests, and a 4xx in one line to anything else."""

import asyncio
import json
import logging
import random
import threading

import numpy as np
import pandas as pd
import pytest

import jaxcold
from jaxcold import serving
from jaxcold.estimators.vectors import Vectors
from jaxcold.types import Csr, DataError

pytest.importorskip("starlette", reason="needs the extra serve")

CLICKS = pd.DataFrame([(f"u{u}", (u + t) % 8) for u in range(12) for t in range(4)])
CLICKS.columns = ["user", "item"]
ITEMS = pd.DataFrame(
    {
        "item": range(10),
        "title": [
            f"{c} {t}" for c in ("red", "blue") for t in ("shoe", "hat", "hose", "bag", "cap")
        ],
        "year": range(1990, 2000),
    }
)
RED = {"item": 77, "title": "a red shoe", "year": 1991}


@pytest.fixture(scope="module")
def model():
    return jaxcold.Linear.fit(CLICKS, ITEMS, l2=1.0, progress=False)


@pytest.fixture
def app(model):
    return serving.create_app(model, max_items=14)


def ask(app, method, path, body=b"", parts=None, **scope):
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [data] if parts is None else parts
    waiting = [
        {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
        for number, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    http = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
    }
    http |= {"query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http"}
    http |= {"server": ("test", 80), "client": ("test", 1), "root_path": "", **scope}
    asyncio.run(app(http, receive, send))
    data = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(data) if method != "HEAD" else data


def rows(frame):
    return json.loads(frame.to_json(orient="records", double_precision=15))


def same(got, frame):
    pd.testing.assert_frame_equal(pd.DataFrame(got["lists"]), frame, check_dtype=False)


def test_the_answers_are_those_of_the_model(app, model):
    assert ask(app, "GET", "/health")[1] == {
        **{"status": "ok", "model": "linear", "users": 12, "items": 10, "cold_items": 2}
    }
    status, got = ask(app, "POST", "/recommend", {"users": ["u3", "u1", "u2"], "k": 3})
    assert status == 200
    same(got, model.recommend(["u3", "u1", "u2"], 3))
    asked = {"histories": {"ann": [3, 4], "bob": [1]}, "candidates": "cold", "exclude_seen": False}
    same(
        ask(app, "POST", "/recommend", asked)[1],
        model.recommend({"ann": [3, 4], "bob": [1]}, candidates="cold"),
    )
    asked = {"histories": {"new": []}, "fallback": "popular", "k": 2, "candidates": [9, 1, 2]}
    same(
        ask(app, "POST", "/recommend", asked)[1],
        model.recommend({"new": []}, 2, fallback="popular", candidates=[1, 2, 9]),
    )
    same(
        ask(app, "POST", "/similar", {"items": [9, 3, 2], "k": 2})[1],
        model.similar_items([9, 3, 2], 2),
    )
    same(
        ask(app, "POST", "/similar", {"content": [RED], "k": 2})[1],
        model.similar_items(content=pd.DataFrame([RED]), k=2),
    )


def test_items_come_and_go(app, model):
    assert ask(app, "POST", "/items", {"items": [RED]}) == (200, {"added": [77], "items": 11})
    added = model.add_items([77], pd.DataFrame([RED]))
    status, got = ask(app, "POST", "/recommend", {"users": ["u1"], "k": 20})
    same(got, added.recommend(["u1"], 20))
    status, got = ask(app, "POST", "/items", {"items": [RED]})
    assert status == 400
    assert "item 77 is known already" in got["error"]
    many = [{**RED, "item": 100 + i} for i in range(4)]
    status, got = ask(app, "POST", "/items", {"items": many})
    assert (status, got) == (409, {"error": "the service holds 14 items at most"})
    assert ask(app, "DELETE", "/items", {"items": [77, 0]})[1] == {"removed": [77, 0], "items": 9}
    assert ask(app, "POST", "/similar", {"items": [77]})[0] == 404
    assert ask(app, "GET", "/health")[1]["items"] == 9
    assert len(model.items) == 10


def test_items_of_features():
    text = pd.DataFrame(np.random.default_rng(0).normal(size=(10, 3)))
    model = jaxcold.Linear.fit(CLICKS, {"text": text}, l2=1.0)
    app = serving.create_app(model)
    new = {"item": 50, "content": {"text": [1, 2.5, 0]}}
    assert ask(app, "POST", "/items", {"items": [new]})[0] == 200
    same(
        ask(app, "POST", "/similar", {"content": [new]})[1],
        model.add_items([50], {"text": np.array([[1, 2.5, 0]])})
        .similar_items(content={"text": np.array([[1, 2.5, 0]])})
        .assign(item=50),
    )
    for content in ({"text": [1, 2]}, {"text": [1, 2, "3"]}, {"text": [1, 2, 10**400]}, {}, 3):
        status, got = ask(app, "POST", "/items", {"items": [{"item": 51, "content": content}]})
        assert status == 400, got


BAD = [
    ("/recommend", b"", 400, "not JSON"),
    ("/recommend", b"\xff\xfe{}", 400, "not UTF-8"),
    ("/recommend", b"[" * 200_000, 400, "nested too deeply|not JSON"),
    ("/recommend", b"[" * 900 + b"]" * 900, 400, "nested too deeply"),
    ("/recommend", b'{"users": ' + b"[" * 8 + b"]" * 8 + b"}", 400, "nested too deeply"),
    ("/recommend", {"users": ["u1"] * 1000, "k": 1000}, 400, "1000 lists of 1000 are more than"),
    ("/recommend", b'{"users": ["\\ud800"]}', 400, "not UTF-8"),
    ("/recommend", b'{"users": ["u1"], "k": NaN}', 400, "NaN is no number"),
    ("/recommend", b'{"users": ["u1"], "k": ' + b"9" * 5000 + b"}", 400, "not JSON"),
    ("/recommend", [], 400, "the body is an object"),
    ("/recommend", {}, 400, "give users or histories"),
    ("/recommend", {"users": [], "k": 1}, 400, "1 to 1000 users"),
    ("/recommend", {"users": ["u1"], "histories": {}}, 400, "give users or histories"),
    ("/recommend", {"users": ["u1"], "file": "/etc/passwd"}, 400, "field 'file' is unknown"),
    ("/recommend", {"users": "u1"}, 400, "users is a list, not a string"),
    ("/recommend", {"users": ["nobody"]}, 404, "users: 'nobody' is unknown"),
    ("/recommend", {"users": [3]}, 400, "users: 3 is no id; those of the model are strings"),
    ("/recommend", {"users": ["u1"] * 1001}, 400, "users is a list of 1000 ids at most"),
    ("/recommend", {"users": ["u1"], "k": True}, 400, "k is a whole number, not true or false"),
    ("/recommend", {"users": ["u1"], "k": 2.5}, 400, "k is a whole number"),
    ("/recommend", {"users": ["u1"], "k": 0}, 400, "k is from 1 to 1000"),
    ("/recommend", {"users": ["u1"], "k": 10**30}, 400, "k is from 1 to 1000"),
    ("/recommend", {"users": ["u1"], "candidates": "new"}, 400, "candidates is"),
    ("/recommend", {"users": ["u1"], "candidates": []}, 400, "candidates: is empty"),
    ("/recommend", {"users": ["u1"], "candidates": [99]}, 404, "candidates: 99 is unknown"),
    ("/recommend", {"users": ["u1"], "fallback": "x"}, 400, "fallback is"),
    ("/recommend", {"histories": {"a": []}}, 400, "without history"),
    ("/recommend", {"histories": {"a": [[1]]}}, 400, r"histories\['a'\]: \[1\] is no id"),
    ("/recommend", {"histories": {"a": [10**25]}}, 400, "is no id"),
    ("/recommend", {"histories": {"a": {"b": 1}}}, 400, "is a list of"),
    ("/similar", {"items": [1], "content": [RED]}, 400, "give items or content"),
    ("/similar", {"items": []}, 400, "items: is empty"),
    ("/similar", {"items": ["1"]}, 400, "'1' is no id"),
    ("/similar", {"content": [3]}, 400, 'each entry is an object with the field "item"'),
    ("/items", {"items": []}, 400, "items is a list of 1 to 1000 items"),
    ("/items", {"items": [{"item": 9.5}]}, 400, "9.5 is no id"),
    ("/items", {"items": [{**RED, "title": ["red"]}]}, 400, "values are strings, numbers or null"),
    ("/items", {"items": [{**RED, "title": True, "year": "x"}]}, 400, "'x', not a finite number"),
    ("/items", {"items": [{**RED, "year": 1e999}]}, 400, "not JSON|Infinity|finite"),
    ("/items", {"items": [RED, RED]}, 400, "item 77 is given twice"),
    ("/items", {}, 400, "field 'items' is absent"),
    ("/nowhere", {}, 404, "Not Found"),
    ("/recommend/../../etc/passwd", {}, 404, "Not Found"),
    ("/health", {}, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD)
def test_a_bad_request_is_a_4xx_in_one_line(app, path, body, status, message):
    got, answer = ask(app, "POST", path, body)
    assert got == status, answer
    assert list(answer) == ["error"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer["error"])
    assert "\n" not in answer["error"]


def test_a_long_body_is_refused_before_it_is_read(app):
    parts = [b" " * 2**16] * 1000
    status, got = ask(app, "POST", "/recommend", parts=parts)
    assert (status, got) == (413, {"error": "the body has more than 1048576 bytes"})


def test_a_slow_body_is_not_waited_for(app, monkeypatch):
    monkeypatch.setattr(serving, "SECONDS_OF_BODY", 0.01)

    async def stream(request):
        yield b"{"
        await asyncio.sleep(3600)

    monkeypatch.setattr("starlette.requests.Request.stream", stream)
    assert ask(app, "POST", "/recommend")[0] == 408


def test_what_fails_inside_is_logged_and_not_shown(app, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(jaxcold.Linear, "recommend", fail)
    with caplog.at_level(logging.ERROR):
        status, got = ask(app, "POST", "/recommend", {"users": ["u1"]})
    assert (status, got) == (500, {"error": "the service failed; its log says why"})
    assert "secret" in caplog.text


def spoil(rng, value, depth=0):
    """A JSON value with something in it changed at random."""
    strange = [
        *(
            None,
            True,
            -1,
            0,
            2**63,
            -(10**30),
            1.5,
            1e308,
            "",
            "u1",
            "\x00",
            "é\U0001f600",
            "x" * 5000,
        ),
        *([], {}, [[]], {"item": 1}, [1] * 3000, ["u1", 1], {"a": [1]}, "../../etc/passwd", 3),
    ]
    if rng.random() < 0.3 or depth > 3:
        return rng.choice(strange)
    if isinstance(value, dict) and value:
        name = rng.choice([*value])
        changed = {**value, name: spoil(rng, value[name], depth + 1)}
        if rng.random() < 0.2:
            changed.pop(name)
        if rng.random() < 0.2:
            changed[rng.choice(["k", "users", "items", "content", "more"])] = rng.choice(strange)
        return changed
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], spoil(rng, value[at], depth + 1), *value[at + 1 :]]
    return rng.choice(strange)


@pytest.mark.filterwarnings("ignore:content. item:UserWarning")
def test_hundreds_of_malformed_requests_leave_the_service_whole(model):
    rng = random.Random(0)
    app = serving.create_app(model, max_items=14)
    good = [
        ("POST", "/recommend", {"users": ["u1", "u2"], "k": 2, "candidates": "all"}),
        ("POST", "/recommend", {"histories": {"a": [1, 2]}, "k": 2, "exclude_seen": True}),
        ("POST", "/similar", {"items": [1, 2], "k": 2}),
        ("POST", "/similar", {"content": [RED], "k": 2}),
        ("POST", "/items", {"items": [RED]}),
        ("DELETE", "/items", {"items": [77]}),
    ]
    statuses = []
    for _ in range(400):
        method, path, body = rng.choice(good)
        data = json.dumps(spoil(rng, body)).encode()
        if rng.random() < 0.3:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.randbytes(rng.randrange(4)) + data[at + rng.randrange(3) :]
        status, answer = ask(app, method, path, data)
        statuses.append(status)
        assert status in (200, 400, 404, 409), (data, answer)
        if status != 200:
            assert list(answer) == ["error"]
            assert "\n" not in answer["error"]
            assert len(answer["error"]) <= 300
    assert statuses.count(400) > 200
    assert statuses.count(200) > 10
    assert ask(app, "GET", "/health")[0] == 200


def test_changes_at_the_same_time_are_all_made(model):
    service = serving.Service(model)
    threads = [
        threading.Thread(target=service.add_items, args=({"items": [{**RED, "item": 100 + i}]},))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(service.model.items)[-8:] == [*range(100, 108)]


def test_vectors_alone_are_not_served():
    ids = pd.Index([1])
    rows = np.ones((1, 1), np.float32)
    vectors = Vectors(ids, ids, rows, rows, Csr.empty(1), {})
    with pytest.raises(DataError, match="serve a model that `fit` made"):
        serving.create_app(vectors)
