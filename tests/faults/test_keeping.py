"""kill -9 in the middle of jobs: what was done is done, the rest is done by the next, and every event counts once."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from typing import Any

import pytest

from taba.names import RETIRED_CLIENT
from tests.patience import PATIENCE_SECONDS
from tests.server.test_service import Processes, ask, eventually
from tests.valkey import free_port, make_older

pytestmark = pytest.mark.real  # jobs that are killed again and again

TABS = [f"tab/{number}" for number in range(60)]
CLIENTS = 20
KILLS = 2


@pytest.mark.takes(seconds=45)
class Killed(Processes):
    def setUp(self) -> None:
        super().setUp()
        self.port = free_port()
        self.random = random.Random(5)
        self.server: Any = None

    def start(self, *more: str) -> None:
        self.server = self.run_server("--listen", f"tcp:{self.port}:interface=127.0.0.1", "--buckets", "64", *more)
        eventually(lambda: self.ready(self.port))

    def post(self, type: str, client: str, value: float) -> None:
        body = {"client": client, "events": [{"tab": tab, "type": type, "value": value} for tab in TABS]}
        answer = ask(self.port, "/v1/events", json.dumps(body).encode())
        self.assertEqual(answer, {"accepted": len(TABS), "rejected": []})

    def wait_for_jobs(self) -> None:
        """Until none runs: those of a killed Server are lost after a while."""
        eventually(lambda: all(record["state"] != "running" for record in ask(self.port, "/v1/jobs")))

    def killed_while(self, kind: str, *more: str) -> None:
        """Start a job again and again, killed each time; then once more to its end."""
        for _ in range(KILLS):
            self.wait_for_jobs()
            ask(self.port, f"/v1/{kind}", b"")
            time.sleep(self.random.random() * 0.04)
            self.server.kill()
            self.server.wait()
            self.start(*more)
        self.wait_for_jobs()
        id = ask(self.port, f"/v1/{kind}", b"")["id"]
        eventually(lambda: ask(self.port, f"/v1/jobs?id={id}")[0]["state"] == "done")

    def test_dead_letters_count_once(self) -> None:
        self.start()
        self.post("Gauge", "first", 1.0)
        for number in range(CLIENTS):
            self.post("TotalsCounter", f"web/{number}", float(number))
        status = ask(self.port, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"type_conflict": CLIENTS * len(TABS)})
        parameters = "&".join(f"name={tab}" for tab in TABS)
        self.assertEqual(self.delete(f"/v1/tabs?{parameters}"), {"tabs": len(TABS), "states": len(TABS)})
        self.killed_while("retry")
        counted = (0, (1 + CLIENTS) * len(TABS))
        # counts in an answer may be some seconds old
        eventually(lambda: (status := ask(self.port, "/v1/status")) and (status["dead_letters"], status["folded"]) == counted)
        for aggregate in ask(self.port, "/v1/aggregates").values():
            self.assertEqual((aggregate["count"], aggregate["total"]), (CLIENTS, sum(range(CLIENTS))))

    def test_totals_do_not_fall_and_vanished_clients_are_merged_once(self) -> None:
        self.start("--forget", "5s")
        # what is folded before this Server knows the store's age is idle only from the first look of a job on
        eventually(lambda: ask(self.port, "/v1/status")["store"]["age"] is not None)
        for number in range(CLIENTS):
            self.post("TotalsCounter", f"web/{number}", float(number))
        age = make_older(self.directory / "state" / "store", 1)  # the States grow older than --forget
        eventually(lambda: ask(self.port, "/v1/status")["store"]["age"] == age)
        self.killed_while("prune", "--forget", "5s")
        self.assertEqual(ask(self.port, "/v1/clients"), [RETIRED_CLIENT])
        for aggregate in ask(self.port, "/v1/aggregates").values():
            self.assertEqual((aggregate["count"], aggregate["total"]), (CLIENTS, sum(range(CLIENTS))))

    def delete(self, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method="DELETE")
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.loads(answer.read())
