"""Recommendations over HTTP: a fitted model behind four paths that take and give JSON.

`create_app` makes a Starlette application (extra ``serve``), and ``python -m experiments.serve``
runs it. Starlette, because it is little more than routing and requests: what a body may hold is
checked here, in one place.

====================  ============================================================================
GET /health           the kind of model, and how many users and items it knows
POST /recommend       {"users": [id, ...]} or {"histories": {name: [id, ...]}}; "k", "candidates"
                      ("all", "warm", "cold" or ids), "exclude_seen", "fallback"
POST /similar         {"items": [id, ...]} or {"content": [item, ...]}; "k"
POST /items           {"items": [item, ...]}: adds items
DELETE /items         {"items": [id, ...]}: removes items
====================  ============================================================================

An item is {"item": id, column: value, ...} of a model of raw columns, and of others {"item": id,
"content": {mode: [number, ...]}}. A list is [{"user": id, "item": id, "rank": 1, "score": s}, ...].
What is wrong with a request is said as {"error": line} with a status from 400 to 499. Requests name
neither files nor code. Added items live in memory until the process ends. The service has no
authentication: who reaches it may do all of this.
"""

import asyncio
import concurrent.futures
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from jaxcold.estimators.base import Recommender
from jaxcold.types import DataError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

MAX_BODY = 2**20  # bytes
MAX_K = 1000
MAX_ENTRIES = 1000  # users or items of a request
MAX_ROWS = 20_000  # of an answer
MAX_ITEMS = 2_000_000  # of the catalogue
SECONDS_OF_BODY = 10.0  # in which a body has to arrive
_DEEPEST = 8  # lists and objects inside each other
_WORKERS = 2  # requests that are computed at once; others wait
_CHANGES = 64  # of the number of items, each of which compiles anew, until programs are dropped

_Fields = Mapping[str, tuple[type, ...]]


class BadRequestError(ValueError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """A model that requests read and change, one change at a time; a request sees one version."""

    def __init__(self, model: Recommender, *, max_items: int = MAX_ITEMS) -> None:
        self.model = model
        self._max_items = max_items
        self._lock = threading.Lock()
        self._changes = 0

    def health(self, body: Any = None) -> dict[str, Any]:
        """What the model is, and its sizes."""
        model = self.model
        return {
            "status": "ok",
            "model": model.served,
            "users": len(model.users),
            "items": len(model.items),
            "cold_items": int((~model.warm).sum()),
        }

    def recommend(self, body: Any) -> dict[str, Any]:
        """The best items of users; see `jaxcold.SEMCo.recommend`."""
        model = self.model
        fields = {"users": (list,), "histories": (dict,), "k": (int,), "candidates": (str, list)}
        fields |= {"exclude_seen": (bool,), "fallback": (str,)}
        given = _check_fields(body, fields)
        options: dict[str, Any] = {
            name: given[name] for name in ("exclude_seen", "fallback") if name in given
        }
        candidates = given.get("candidates")
        if isinstance(candidates, list):
            candidates = _check_ids(candidates, model.items, "candidates", len(model.items))
            if not candidates:
                raise BadRequestError("candidates: is empty")
        k = _check_k(given)
        if ("users" in given) == ("histories" in given):
            raise BadRequestError("give users or histories, one of them")
        if "users" in given:
            names = asked = _check_ids(given["users"], model.users, "users")
        else:
            names = [*given["histories"]]
            asked = [
                _check_ids(entries, model.items, f"histories[{name!r}]", MAX_BODY)
                for name, entries in given["histories"].items()
            ]
        if not 1 <= len(names) <= MAX_ENTRIES:
            raise BadRequestError(f"1 to {MAX_ENTRIES} users can be asked about, not {len(names)}")
        _check_rows(len(names), k)
        options |= {"users" if "users" in given else "histories": _pad(asked)}
        lists = model.recommend(k=k, candidates=candidates, **options)
        if "histories" in given:
            lists = lists[lists["user"] < len(names)]
            lists = lists.assign(user=[names[row] for row in lists["user"]])
        return {"lists": lists.drop_duplicates(["user", "item"]).to_dict("records")}

    def similar(self, body: Any) -> dict[str, Any]:
        """The items most similar to some items."""
        model = self.model
        given = _check_fields(body, {"items": (list,), "content": (list,), "k": (int,)})
        k = _check_k(given)
        if ("items" in given) == ("content" in given):
            raise BadRequestError("give items or content, one of them")
        if "items" in given:
            ids = _check_ids(given["items"], model.items, "items")
            if not ids:
                raise BadRequestError("items: is empty")
            _check_rows(len(ids), k)
            lists = model.similar_items(_pad(ids), k).drop_duplicates(["item", "similar"])
        else:
            ids, content = _to_content(model, given["content"], "content")
            _check_rows(len(ids), k)
            lists = model.similar_items(content=content, k=k)
            if not isinstance(content, pd.DataFrame):
                lists["item"] = [ids[row] for row in lists["item"]]
        return {"lists": lists.to_dict("records")}

    def add_items(self, body: Any) -> dict[str, Any]:
        """Adds items, cold ones."""
        given = _check_fields(body, {"items": (list,)}, required="items")
        with self._lock:
            ids, content = _to_content(self.model, given["items"], "items")
            if len(self.model.items) + len(ids) > self._max_items:
                raise BadRequestError(f"the service holds {self._max_items} items at most", 409)
            self._replace(self.model.add_items(ids, content))
        return {"added": ids, "items": len(self.model.items)}

    def remove_items(self, body: Any) -> dict[str, Any]:
        """Removes items."""
        given = _check_fields(body, {"items": (list,)}, required="items")
        with self._lock:
            ids = _check_ids(given["items"], self.model.items, "items")
            self._replace(self.model.remove_items(ids))
        return {"removed": ids, "items": len(self.model.items)}

    def _replace(self, model: Recommender) -> None:
        self.model = model
        self._changes += 1
        if self._changes % _CHANGES == 0:
            jax.clear_caches()


def create_app(model: Recommender, *, max_items: int = MAX_ITEMS) -> "Starlette":
    """The application of a model.

    Args:
        model: fitted or loaded; `Service` says what requests do with it.
        max_items: of the catalogue, which requests can make larger.

    Raises:
        DataError: if Starlette is absent, or for vectors alone, which no request can change.
    """
    if not isinstance(model, Recommender):
        raise DataError("holds vectors of users and items alone; serve a model that `fit` made")
    try:
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError:
        raise DataError('serving needs Starlette; pip install ".[serve]"') from None

    service = Service(model, max_items=max_items)
    workers = concurrent.futures.ThreadPoolExecutor(_WORKERS, "serving")

    def respond(value: Any, status: int = 200) -> Response:
        text = json.dumps(value, default=_to_plain)  # ASCII: any string can be sent
        return Response(text, status, media_type="application/json")

    def route(path: str, method: str, answer: Callable[[Any], Any], has_body: bool = True) -> Route:
        async def handle(request: "Request") -> Response:
            try:
                body = _parse(await _read(request)) if has_body else None
                loop = asyncio.get_running_loop()
                return respond(await loop.run_in_executor(workers, answer, body))
            except BadRequestError as error:
                return respond({"error": _one_line(error)}, error.status)
            except (DataError, ValueError) as error:
                return respond({"error": _one_line(error)}, 400)
            except Exception:
                logging.getLogger(__name__).exception("%s %s", method, path)
                return respond({"error": "the service failed; its log says why"}, 500)

        return Route(path, handle, methods=[method])

    def refuse(request: "Request", error: Any) -> Response:
        return respond({"error": _one_line(error.detail)}, error.status_code)

    return Starlette(
        routes=[
            route("/health", "GET", service.health, has_body=False),
            route("/recommend", "POST", service.recommend),
            route("/similar", "POST", service.similar),
            route("/items", "POST", service.add_items),
            route("/items", "DELETE", service.remove_items),
        ],
        exception_handlers={404: refuse, 405: refuse},
    )


async def _read(request: "Request") -> bytes:
    """The body, refused as soon as it is too long or too slow."""
    from starlette.requests import ClientDisconnect

    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS_OF_BODY):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise BadRequestError(f"the body has more than {MAX_BODY} bytes", 413)
                parts.append(part)
    except TimeoutError:
        raise BadRequestError("the body did not arrive in time", 408) from None
    except ClientDisconnect:
        raise BadRequestError("the client has gone", 400) from None
    return b"".join(parts)


def _parse(data: bytes) -> Any:
    """What a JSON body holds."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates fails here
    except UnicodeError:
        raise BadRequestError("the body is not UTF-8 text") from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON ({error})") from None
    level = [value]
    for _ in range(_DEEPEST):
        inner = [
            x.values() if isinstance(x, dict) else x for x in level if isinstance(x, list | dict)
        ]
        level = [x for values in inner for x in values]
    if any(isinstance(x, list | dict) for x in level):
        raise BadRequestError("the body is nested too deeply")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_fields(body: Any, fields: _Fields, required: str | None = None) -> dict[str, Any]:
    """The body, an object with no other fields than these, each of one of its types."""
    if not isinstance(body, dict):
        raise BadRequestError(f"the body is an object with the fields {', '.join(fields)}")
    for name, value in body.items():
        if name not in fields:
            raise BadRequestError(f"field {name!r:.40} is unknown; known: {', '.join(fields)}")
        if type(value) not in fields[name]:
            kinds = " or ".join(_JSON_TYPES[kind] for kind in fields[name])
            raise BadRequestError(f"{name} is {kinds}, not {_JSON_TYPES[type(value)]}")
    if required is not None and required not in body:
        raise BadRequestError(f"field {required!r} is absent")
    return body


_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
    type(None): "null",
}


def _check_k(given: Mapping[str, Any]) -> int:
    k = given.get("k", 10)
    if not 1 <= k <= MAX_K:
        raise BadRequestError(f"k is from 1 to {MAX_K}, not {k!r:.20}")
    return k


def _check_rows(lists: int, k: int) -> None:
    if lists * k > MAX_ROWS:
        raise BadRequestError(f"{lists} lists of {k} are more than {MAX_ROWS} rows; ask for fewer")


def _check_ids(ids: Any, known: pd.Index, place: str, most: int = MAX_ENTRIES) -> list[Any]:
    """A list of ids that are all known."""
    if not isinstance(ids, list) or len(ids) > most:
        raise BadRequestError(f"{place} is a list of {most} ids at most")
    _check_types(ids, known, place)
    absent = known.get_indexer(pd.Index(ids, dtype=known.dtype)) < 0 if ids else np.zeros(0, bool)
    if absent.any():
        raise BadRequestError(f"{place}: {ids[int(np.argmax(absent))]!r:.40} is unknown", 404)
    return ids


def _pad(asked: list[Any]) -> list[Any]:
    """The first one again, up to a power of two: each number of users is a program of its own."""
    return [*asked, *asked[:1] * (2 ** (len(asked) - 1).bit_length() - len(asked))]


def _check_types(ids: list[Any], known: pd.Index, place: str) -> None:
    whole = pd.api.types.is_integer_dtype(known.dtype)
    for value in ids:
        is_id = isinstance(value, str)
        if whole:
            is_id = type(value) is int and -(2**63) <= value < 2**63
        if not is_id:
            kind = "whole numbers" if whole else "strings"
            raise BadRequestError(f"{place}: {value!r:.40} is no id; those of the model are {kind}")


def _to_content(model: Recommender, entries: list[Any], place: str) -> tuple[list[Any], Any]:
    """Ids and content of the items of a request."""
    if not model.widths:
        raise BadRequestError("the model knows no content, so that it cannot place new items")
    if not 1 <= len(entries) <= MAX_ENTRIES:
        raise BadRequestError(f"{place} is a list of 1 to {MAX_ENTRIES} items")
    for entry in entries:
        if not isinstance(entry, dict) or "item" not in entry:
            raise BadRequestError(f'{place}: each entry is an object with the field "item", its id')
    ids = [entry["item"] for entry in entries]
    _check_types(ids, model.items, place)
    if "" not in model.modes.raw:
        return ids, _to_arrays(model, entries, place)
    columns = model.modes.raw[""].names
    values = [value for entry in entries for value in entry.values()]
    if any(isinstance(value, list | dict) for value in values):
        raise BadRequestError(f"{place}: values are strings, numbers or null")
    rows = [[entry.get(str(name)) for name in columns] for entry in entries]
    return ids, pd.DataFrame(rows, index=pd.Index(ids), columns=pd.Index(columns), dtype=object)


def _to_arrays(model: Recommender, entries: list[Any], place: str) -> dict[str, np.ndarray]:
    arrays = {}
    if model.modes.raw:
        raise BadRequestError("items of this model cannot be given in requests; add them in Python")
    for mode, width in model.widths.items():
        rows = []
        for entry in entries:
            content = entry.get("content")
            row = content.get(mode) if isinstance(content, dict) else None
            if (
                not isinstance(row, list)
                or len(row) != width
                or any(type(x) not in (int, float) for x in row)
            ):
                raise BadRequestError(
                    f'{place}: each entry has "content": {{{json.dumps(mode)}: [...]}} with '
                    f"{width} numbers"
                )
            rows.append(row)
        try:
            arrays[mode] = np.array(rows, np.float64)
        except OverflowError:
            raise BadRequestError(f"{place}: a number is too large") from None
    return arrays


def _to_plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item()


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]
