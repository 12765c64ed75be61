"""Strangers at a real Server: a crowd of connections that mean harm, and the largest requests of the worst shapes."""

from __future__ import annotations

import http.client
import json
import struct
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import CONTENT_TYPE, MAX_LIST_BYTES, MAX_LIST_VALUES, Column, SentBatch, encode_batch, encode_envelope
from taba.bounds import MAX_BATCH_COLUMNS, MAX_VALUE_BYTES, KiB
from taba.calls import MAX_BODY_BYTES
from taba.connections import MAX_HALL_OF_PEER
from taba.events import MAX_POSTED_EVENTS
from tests.faults.crowd import CROWD, STRANGER
from tests.needs import needs_network
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

MOST = 8  # times its bound, that a request may take of memory
STREAM, NONCE, TIME = bytes(16), bytes(8), struct.pack("<d", 1.7e9)
ENVELOPES, EVENTS = ("/v1/envelopes", CONTENT_TYPE), ("/v1/events", "application/json")


def envelope(columns: list[Column]) -> bytes:
    """As many batches of these columns as one takes."""
    content = encode_batch(STREAM, 5, 1, columns)
    count = (MAX_BODY_BYTES - KiB) // (len(content) + 100)
    return encode_envelope("bad", "bad", 1.7e9, None, [SentBatch(content, place, NONCE) for place in range(count)])


def posted(value: bytes) -> bytes:
    """As many events with this value as one request takes."""
    event = b'{"tab": "t", "type": "Buffer", "value": %b}' % value
    count = min(MAX_POSTED_EVENTS, (MAX_BODY_BYTES - KiB) // (len(event) + 1))
    return b'{"client": "bad", "events": [' + b",".join([event] * count) + b"]}"


def worst() -> dict[str, tuple[tuple[str, str], bytes]]:
    """Of each way that makes much of what comes, the largest request: where it goes, and its body."""
    lists: list[Any] = [[[]] * (MAX_VALUE_BYTES - 8)] * (MAX_LIST_BYTES // MAX_VALUE_BYTES)
    nothing: list[Any] = [None] * MAX_LIST_VALUES
    many = MAX_BODY_BYTES - 200
    return {
        "a list of lists": (ENVELOPES, b"\xdd" + many.to_bytes(4, "big") + b"\x90" * many),
        "values that are lists in lists": (ENVELOPES, envelope([Column("a", "t", "Buffer", TIME * len(lists), lists)])),
        "values that are nothing": (ENVELOPES, envelope([Column("a", "t", "Buffer", TIME * len(nothing), nothing)])),
        "columns of one event": (ENVELOPES, envelope([Column("a", f"t{n}", "T", TIME, TIME) for n in range(MAX_BATCH_COLUMNS)])),
        "columns of 60 events": (ENVELOPES, envelope([Column("a", f"t{n}", "T", TIME * 60, TIME * 60) for n in range(MAX_BATCH_COLUMNS)])),
        "small events": (EVENTS, posted(b"1")),
        "events that are lists in lists": (EVENTS, posted(b"[" + b"[]," * 5000 + b"1]")),
        "events that nest deep": (EVENTS, posted(b"[" * 5000 + b"]" * 5000)),
        "events that are objects": (EVENTS, posted(b"{" + b",".join(b'"%x":0' % n for n in range(3000)) + b"}")),
    }


@pytest.mark.real
class Crowded(SynchronousTestCase):
    def test_a_thousand_connections_of_one_host_that_idle_drip_or_do_not_read_keep_nobody_else_waiting(self) -> None:
        command = [*needs_network(), sys.executable, "-m", "tests.faults.crowd"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        told = json.loads(done.stdout)
        self.assertEqual(told["found"], {"here 200": 20, "friend 200": 20})
        cut = told["listening"]["cut"]
        self.assertGreaterEqual(told["made"], CROWD)
        # how many meet their deadline before others come for their place is the machine's matter: more were cut than ever waited at once
        self.assertGreater(cut["too_many_of_peer"], MAX_HALL_OF_PEER)
        self.assertEqual(cut.get("hall_full", 0), 0)  # it takes from nobody but itself
        self.assertIn(f"at once of {STRANGER} waited without a whole request", "\n".join(told["problems"]))


@pytest.mark.real
class Large(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.services.pid('server')}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def post(self, where: tuple[str, str], body: bytes) -> int:
        path, kind = where
        with closing(http.client.HTTPConnection("127.0.0.1", self.services.server_port, timeout=PATIENCE_SECONDS)) as connection:
            connection.request("POST", path, zlib.compress(body, 1), {"Content-Type": kind, "Content-Encoding": "deflate"})
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def test_a_request_of_any_of_the_worst_shapes_takes_eight_times_its_bound_of_memory_at_the_most(self) -> None:
        self.services.start_server()
        self.post(EVENTS, b'{"client": "a", "events": []}')  # what is imported once is
        for what, (where, body) in worst().items():
            Path(f"/proc/{self.services.pid('server')}/clear_refs").write_text("5")  # the peak is what it has now
            before = self.memory("VmRSS")
            self.assertIn(self.post(where, body), (200, 400), what)
            self.assertLess(self.memory("VmHWM") - before, MOST * MAX_BODY_BYTES, what)
