"""Real processes: one posts with keys under ever new Clients, into the bucket of all others; who records beside it loses nothing and waits
for nothing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.grants import MAX_CLIENTS_HERE
from taba.batch import KEYS_FULL
from taba.server import keys
from taba.server.fold.posts import MAX_POSTERS
from tests.patience import until
from tests.services import ROOT, Services
from tests.valkey import EphemeralValkey

pytestmark = pytest.mark.real  # a store, a Server, an Agent and a client; 2,000 posts

# records into a small ring, and says how many whenever a line comes; ends with its standard input
BESIDE = """
import select, sys
from taba import client
client.start("web/beside")
bids, count = client.counter("bids_won"), 0
while True:
    bids.inc()
    count += 1
    if select.select([sys.stdin], [], [], 0.002)[0]:
        if not sys.stdin.readline():
            break
        assert client.stats()["dropped"] == 0, client.stats()
        print(count, flush=True)
"""
RECORD = struct.pack("<16s16s16sI", b"k" * 16, b"d" * 16, b"s" * 16, 0)


@pytest.mark.takes(seconds=50)
class KeyedFloods(SynchronousTestCase):
    def setUp(self) -> None:
        store = EphemeralValkey()
        self.addCleanup(store.remove)
        self.store = store
        services = self.services = Services(buckets=1)
        self.addCleanup(services.stop)
        services.start_server(store=store.url)
        services.start_agent()
        until(lambda: services.agent_query.status()["buckets"] is not None, "the number of buckets")
        environ = {**services.environ, "PYTHONPATH": str(ROOT), "TABA_RING_BYTES": "65536"}
        beside = subprocess.Popen([sys.executable, "-c", BESIDE], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(beside.communicate, timeout=60)
        self.addCleanup(beside.kill)
        self.beside: Any = beside
        address = urlsplit(services.agent_url)
        self.agent = HTTPConnection(f"{address.hostname}", address.port, timeout=60)
        self.addCleanup(self.agent.close)

    def post(self, client: str, key: str) -> tuple[int, str | None]:
        body = json.dumps({"client": client, "events": [{"tab": "jobs", "type": "CounterGroup", "value": 1}]})
        self.agent.request("POST", "/v1/events", body, {"Content-Type": "application/json", "Idempotency-Key": key})
        answer = self.agent.getresponse()
        answer.read()
        self.agent.close()  # an Agent closes what is kept and idle, which a busy machine's client may be
        return answer.status, answer.getheader("retry-after")

    def folded(self, tab: str) -> int:
        """How many of its events are in the store, of all Clients."""
        found = self.services.query.aggregate(tab)
        return int(found["1d"]["count"]) if found else 0

    def all_of_the_neighbour_comes(self) -> None:
        self.beside.stdin.write("\n")
        self.beside.stdin.flush()
        told = int(self.beside.stdout.readline())
        until(lambda: self.folded("bids_won") >= told, lambda: f"{told} events of the neighbour; {self.services.agent_query.status()}")

    def test_who_floods_is_told_to_come_later_and_what_was_taken_of_it_comes_through(self) -> None:
        taken = 0
        while (said := self.post(f"flood/{taken}", "k"))[0] == 200:
            taken += 1
        self.assertEqual((taken, said), (MAX_CLIENTS_HERE // 2, (429, "3600")))
        self.all_of_the_neighbour_comes()
        until(lambda: self.folded("jobs") == taken, "what was taken")
        self.assertEqual(self.post("flood/0", "another")[0], 200)  # who is there goes on
        self.services.kill_agent()
        self.services.start_agent()
        until(lambda: self.services.agent_query.status()["buckets"] is not None, "the number of buckets")
        self.agent.close()
        self.assertEqual(self.post(f"flood/{taken}", "k")[0], 429)  # it knows what it took
        until(lambda: self.folded("jobs") == taken + 1, "what was taken")

    def test_where_servers_have_no_room_nobody_waits_but_who_posted(self) -> None:
        fields = [field for number in range(MAX_POSTERS) for field in (number.to_bytes(8, "big"), RECORD)]
        self.store.call("HSET", keys.posts(0), *fields)  # others have taken it all
        self.assertEqual(self.post("job/0", "k"), (200, None))
        until(lambda: [problem for problem in self.services.agent_query.status()["problems"] if KEYS_FULL in problem], "what waits is said")
        self.all_of_the_neighbour_comes()
        self.assertEqual(self.post("job/1", "k"), (429, "3600"))
        self.assertEqual(self.folded("jobs"), 0)
        self.store.call("DEL", keys.posts(0))
        until(lambda: self.folded("jobs") == 1, "what waited")
