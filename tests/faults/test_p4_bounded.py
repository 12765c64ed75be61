"""P4, bounded: every queue, body, name and buffer has a bound, with a counted behaviour at it; memory does not grow with what waits."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys

import psutil
import pytest

from taba.bounds import MAX_ENVELOPE_BYTES, MiB
from tests.patience import PATIENCE_SECONDS

from ..services import ROOT
from .job import ShortJob

FLOOD = """
import json, os, resource, sys
from taba import client
tabs = [client.counter(f"flood_{number}") for number in range(10)]
texts = client.tab("texts", type="Buffer")
for tab in tabs:
    tab.inc()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(int(sys.argv[1])):
    tabs[number % 10].inc()
    texts.record("x" * 1000)
stats = client.stats()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([stats["ring_bytes"], grown, stats["recorded"] + stats["dropped"], stats["dropped_by_reason"]]))
"""
# names more Tabs than its ring has places for, each with one event
MANY_TABS = """
import json, sys
from taba import client
client.start("many/1")
for number in range(int(sys.argv[1])):
    client.tab(f"many_{number}_{'x' * 100}", type="TotalsCounter").record(1)
stats = client.stats()
print(json.dumps([stats["recorded"], stats["dropped_by_reason"]]))
"""


class Floods(ShortJob):
    def flood(self, events: int) -> dict[str, int]:
        """Record twice as many events as `events` into a ring of 64 KiB; the drops by reason."""
        done = self.services.run("-c", FLOOD, str(events), timeout=PATIENCE_SECONDS, TABA_RING_BYTES="65536")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        ring_bytes, grown_kib, accounted, drops = json.loads(done.stdout)
        self.assertEqual((ring_bytes, accounted), (65_536, 10 + 2 * events))
        self.assertLess(grown_kib, 8 * 1024)
        return dict(drops)


class Bounded(Floods):
    def test_a_ring_that_nobody_reads_stays_as_it_is_and_counts_what_has_no_place(self) -> None:
        drops = self.flood(20_000)
        self.assertGreater(drops["ring_full"] + drops.get("bytes_full", 0), 30_000)

    def post(self, path: str, length: int, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.services.server_port, timeout=PATIENCE_SECONDS)
        self.addCleanup(connection.close)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(length))
        connection.putheader("Content-Type", "application/json")
        connection.endheaders()
        connection.send(body)
        return connection.getresponse().status

    def test_a_body_beyond_the_bound_is_refused_before_it_is_read(self) -> None:
        self.services.start_server()
        for path in ("/v1/events", "/v1/envelopes"):
            self.assertEqual(self.post(path, MAX_ENVELOPE_BYTES + 1, b"{"), 413, path)
            self.assertNotEqual(self.post(path, 2, b"{}"), 413, path)


@pytest.mark.real
@pytest.mark.takes(seconds=50)
class BoundedForLong(Floods):
    def test_of_twice_what_it_can_hold_each_event_is_folded_or_its_drop_counted_and_no_part_grows(self) -> None:
        command = [sys.executable, "-m", "tests.faults.soak", "--minutes", "0.3", "--load", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("verdict: every event once, or dropped and counted; memory flat\n", done.stdout)

    def test_a_ring_whose_directory_is_full_counts_what_has_no_place_in_it_and_both_agent_and_command_say_whose(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        done = self.services.run("-c", MANY_TABS, "2000", TABA_RING_BYTES="65536")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        recorded, drops = json.loads(done.stdout)
        self.assertEqual(recorded + drops["directory_full"], 2000)
        self.assertGreater(drops["directory_full"], 1000)
        self.assertEqual(self.wait_for(recorded)["folded"], recorded)
        self.until(lambda: self.services.agent_query.status()["dropped_by_reason"] == drops, "the Agent counts something else")
        said = f"{drops['directory_full']} events"
        self.until(lambda: said in self.problems("Agent") and "more Tabs than its ring can" in self.problems("Agent"), "nobody says it")
        told = self.services.taba("status", "--server", self.services.agent_url)
        self.assertIn("more Tabs than its ring can", " ".join((told.stdout + told.stderr).split()))

    def test_an_agent_whose_server_is_away_grows_by_no_more_than_its_bounds(self) -> None:
        self.services.start_server()
        self.services.start_agent("--spool-bytes", str(32 * MiB))
        self.flood(10)
        self.wait_for(20)
        self.services.kill_server()
        process = psutil.Process(self.services.pid("agent"))
        before = process.memory_info()
        for _ in range(40):
            self.flood(50_000)
        after = process.memory_info()
        private = (after.rss - after.shared) - (before.rss - before.shared)
        self.assertLess(private, 128 * MiB)
        status = self.services.agent_query.status()
        self.assertGreater(status["dropped_by_reason"]["ring_full"], 0)
