"""Requests a second of the HTTP service: ``python -m experiments.bench.service``.

100,000 items of 64 numbers, 1,000 users, 8 clients on this machine that keep their connections;
each asks ``/recommend`` for one user at a time. Then as many malformed requests. Prints requests a
second, the median and the 99th percentile of the time to an answer, the statuses, and the peak
memory after each half. Needs the extra ``serve``.
"""

import collections
import http.client
import json
import resource
import threading
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import uvicorn
from absl import app, flags

import jaxcold
from jaxcold import serving
from jaxcold.estimators.base import Recommender

if __name__ == "__main__":
    _ITEMS = flags.DEFINE_integer("items", 100_000, "items of the catalogue", lower_bound=1)
    _CLIENTS = flags.DEFINE_integer("clients", 8, "clients that ask at once", lower_bound=1)
    _REQUESTS = flags.DEFINE_integer("requests", 250, "of each client and kind", lower_bound=1)

BAD = (
    *(b"", b"[" * 100_000, b"\xff", b'{"users": "u"}', b'{"users": [1], "k": 0}'),
    *(b'{"users": ["nobody"]}', b'{"histories": {"a": [[]]}}', b" " * (serving.MAX_BODY + 1)),
)


def make_model(items: int, users: int = 1000, width: int = 64) -> Recommender:
    """A model of random content; every user took 20 items."""
    rng = np.random.default_rng(0)
    content = rng.standard_normal((items, width), dtype=np.float32)
    clicks = pd.DataFrame(
        {"user": np.repeat(np.arange(users), 20), "item": rng.integers(0, items, 20 * users)}
    )
    return jaxcold.Linear.fit(clicks, content, items=range(items), l2=1.0, standardize=False)


class Client(threading.Thread):
    """Sends bodies one after the other."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        super().__init__()
        self._port, self._bodies = port, bodies
        self.times: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()

    def run(self) -> None:
        """Asks and measures."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        for body in self._bodies:
            start = time.perf_counter()
            try:
                connection.request("POST", "/recommend", body)
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
            except OSError:  # refused while the body was sent: the answer may be lost
                self.statuses[0] += 1
                connection.close()
            self.times.append(time.perf_counter() - start)


def measure(name: str, port: int, clients: int, bodies: list[bytes]) -> None:
    """Prints what clients that send these bodies see."""
    running = [Client(port, bodies[i:] + bodies[:i]) for i in range(clients)]
    start = time.perf_counter()
    for client in running:
        client.start()
    for client in running:
        client.join()
    seconds = time.perf_counter() - start
    times = np.concatenate([client.times for client in running])
    statuses = sum((client.statuses for client in running), collections.Counter())
    median, last = np.quantile(times, [0.5, 0.99]) * 1e3
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {len(times) / seconds:.0f} requests/s, median {median:.0f} ms, "
        f"p99 {last:.0f} ms, statuses {dict(statuses)}, peak memory {memory:.0f} MB"
    )


def run(items: int, clients: int, requests: int) -> None:
    """Serves and asks."""
    config = uvicorn.Config(
        serving.create_app(make_model(items)), port=0, log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    good = [json.dumps({"users": [i % 1000], "k": 10}).encode() for i in range(requests)]
    bad = [BAD[i % len(BAD)] for i in range(requests)]
    try:
        measure("warming up", port, 1, good[:20])
        for half in ("first", "second"):
            measure(f"well-formed, {half} half", port, clients, good[: (requests + 1) // 2])
        for half in ("first", "second"):
            measure(f"malformed, {half} half", port, clients, bad[: (requests + 1) // 2])
    finally:
        server.should_exit = True
        thread.join()


def _main(argv: Sequence[str]) -> None:
    del argv
    run(_ITEMS.value, _CLIENTS.value, _REQUESTS.value)


if __name__ == "__main__":
    app.run(_main)
