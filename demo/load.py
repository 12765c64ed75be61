"""The users: threads that ask the application over HTTP, with pauses, until they are told to stop."""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import threading
import time
from urllib.parse import quote

from taba import client
from taba.interrupted import Interrupted

USERS = 6
MEAN_PAUSE = 0.02  # seconds; leaves the two cores of a small machine some room
TIMEOUT = 30.0

stopping = threading.Event()  # of the users; only the main thread sets it
requests = client.counter("load.requests")
failures = client.counter("load.failures")
seconds = client.percentile("load.seconds", unit="seconds", description="what a user waits")


def main(told: Interrupted, port: int) -> None:
    """Ask until SIGTERM; then finish the requests under way, so that both sides have counted the same."""
    client.start("load/{slot}")
    answer = json.loads(_get(port, "/words")[1])
    users = [threading.Thread(target=_use, args=(port, answer["words"], answer["files"], random.Random(user))) for user in range(USERS)]
    for user in users:
        user.start()
    told.wait()
    stopping.set()
    for user in users:
        user.join()


def _use(port: int, words: list[str], files: int, chance: random.Random) -> None:
    modules = sorted(sys.stdlib_module_names)
    while not stopping.is_set():
        choice = chance.random()
        if choice < 0.70:
            path = "/search?q=" + quote(" ".join(chance.choices(words, k=chance.choice((1, 1, 2, 2, 3)))))
        elif choice < 0.72:
            path = "/search?q=" + chance.choice(("", "a", "42"))
        elif choice < 0.90:
            path = "/module/" + chance.choice(modules)
        else:
            path = f"/outline/{chance.randrange(files)}"
        _get(port, path)
        stopping.wait(chance.expovariate(1 / MEAN_PAUSE))


def _get(port: int, path: str) -> tuple[int, bytes]:
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        failures.inc()
        return 0, b"{}"
    finally:
        connection.close()
        requests.inc()
        seconds.observe(time.perf_counter() - begun)


if __name__ == "__main__":
    with Interrupted(signal.SIGTERM) as told:
        main(told, int(sys.argv[1]))
