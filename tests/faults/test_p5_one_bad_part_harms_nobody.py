"""P5, one bad part harms nobody else: it is isolated, counted and said, its bytes are kept, and the rest works on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from taba.query import ServerUnavailable
from tests.patience import PATIENCE_SECONDS

from ..services import ROOT
from .job import Job, ShortJob

# fold raises, hangs, or ends the process, as the value says
BAD_HANDLER = """
import os, time
from taba.handlers import Handler

class Bad(Handler):
    "What a careless author writes."
    type = "Bad"
    def new_state(self): return 0
    def fold(self, state, events, now):
        for value in events.values:
            if value == "raise": raise RuntimeError("no")
            if value == "hang": time.sleep(3600)
            if value == "exit": os._exit(3)
        return state + len(events.values)
    def project(self, state, now): return {"count": state}
    def aggregate(self, projections): return {"count": sum(one["count"] for one in projections)}

bad = Bad()
"""

# one that behaves: each line has it record ten thousand events more, and say what became of them
GOOD = """
import json, sys
from taba import client
client.start(sys.argv[1])
hits = client.tab("hits", type="TotalsCounter")
hits.record(1)
for line in sys.stdin:
    for number in range(10_000):
        hits.record(1)
    stats = client.stats()
    print(json.dumps([stats["recorded"], stats["dropped"]]), flush=True)
"""
# one that does not: names Tabs without end, and records more than its ring holds
HOSTILE = """
import itertools
from taba import client
client.start("hostile/1")
for number in itertools.count():
    tab = client.tab(f"flood_{number}", type="Buffer")
    for _ in range(20):
        tab.record("x" * 1000)
"""


class BadHandlers(ShortJob):
    def bad_handler(self) -> None:
        plugins = self.services.directory / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "acme_bad.py").write_text(BAD_HANDLER)

    def post_bad(self, tab: str, value: str) -> None:
        """Post one event, under a key until it is taken: on a busy machine a child takes its time to start."""

        def is_taken() -> bool:
            try:
                return bool(self.services.query.post_events("bad/1", [{"tab": tab, "type": "Bad", "value": value}], key=tab)["accepted"])
            except ServerUnavailable:
                return False

        self.until(is_taken, f"{tab} is not taken")


class OneBadPart(BadHandlers):
    def bad_rings(self) -> list[Path]:
        """Segments with this Agent's prefix that are no rings: empty, noise, a head that promises too much."""
        made = []
        for name, content in (("empty", b""), ("noise", os.urandom(100_000)), ("zeros", bytes(65_536))):
            path = Path(f"/dev/shm/taba.{self.services.agent}.{name}")
            path.write_bytes(content)
            self.addCleanup(path.unlink, missing_ok=True)
            made.append(path)
        return made

    def bad_batches(self) -> None:
        for body in (b"", os.urandom(1000), b"\xdc\xff\xff" * 10, b"\x93" * 5000):
            request = urllib.request.Request(f"{self.services.server_url}/v1/envelopes", body, {"Content-Type": "application/msgpack"})
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
            self.assertLess(caught.exception.code, 500)
            caught.exception.close()

    def test_bad_rings_batches_and_handlers_are_counted_and_said_and_the_job_beside_them_is_exact(self) -> None:
        self.bad_handler()
        self.bad_rings()
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(8_000, pause=0.0)
        self.bad_batches()
        for value in ("raise", "exit"):
            self.post_bad(f"bad_{value}", value)
        self.post_bad("bad_good", "good")
        self.end_recorders(recorders)
        status = self.wait_for(8_001)
        self.assertEqual((status["folded"], status["dead_letters"]), (8_001, 2))
        # its child may be on its way up
        self.until(lambda: self.services.query.aggregate("bad_good") == {"count": 1}, "the good event is not there")
        self.assertGreaterEqual(status["handlers"]["Bad"]["errors"], 1)
        agent = self.services.agent_query.status()
        self.assertEqual(agent["recorded"], 8_000)
        self.assertEqual(sum(count for tabs in self.recorded().values() for count, _ in tabs.values()), 8_000)


@pytest.mark.real
class Hanging(BadHandlers):
    def test_a_handler_that_hangs_is_ended_and_said_its_event_is_a_dead_letter_and_the_job_beside_it_is_exact(self) -> None:
        self.bad_handler()
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(8_000, pause=0.05)
        self.post_bad("bad_hang", "hang")
        self.post_bad("bad_good", "good")
        self.end_recorders(recorders)
        status = self.wait_for(8_001)
        self.assertEqual((status["folded"], status["dead_letters"]), (8_001, 1))
        self.assertIn("Type Bad hung, crashed or was killed", self.problems("Server"))
        self.until(lambda: self.services.query.aggregate("bad_good") == {"count": 1}, "the good event is not there")
        (letter,) = self.services.query.dead_letters()
        self.assertEqual((letter["tab"], letter["value"]), ("bad_hang", "hang"))  # its bytes are kept
        self.assertEqual(sum(count for tabs in self.recorded().values() for count, _ in tabs.values()), 8_000)


@pytest.mark.real
class Neighbours(Job):
    def begin(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.services.environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def more(self, process: subprocess.Popen[str]) -> int:
        """Have a good one record more; how many events it recorded in all, none of which was dropped."""
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("more\n")
        process.stdin.flush()
        recorded, dropped = json.loads(process.stdout.readline())
        self.assertEqual(dropped, 0)
        return int(recorded)

    def counts(self) -> dict[str, int]:
        """How many events of each Client are there."""
        shown = self.services.query.projections(name="hits").get("hits", {})
        return {client: int(projection["count"]) for client, projection in shown.items()}

    def ring_of(self, process: subprocess.Popen[str]) -> Path:
        """Its segment, by its mappings."""
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        (found,) = {line.split()[5] for line in maps.splitlines() if f"/dev/shm/taba.{self.services.agent}." in line}
        return Path(found)

    def test_beside_those_that_flood_and_segments_that_somebody_cuts_and_removes_a_good_one_loses_nothing(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        good, removed, cut = (self.begin(GOOD, name) for name in ("good/1", "removed/1", "cut/1"))
        hostile = self.begin(HOSTILE)
        self.until(lambda: self.counts() == {"good/1": 1, "removed/1": 1, "cut/1": 1}, "not all are seen")
        self.ring_of(removed).unlink()
        cut_ring = self.ring_of(cut)
        os.truncate(cut_ring, 4096)
        recorded = {"good/1": self.more(good), "removed/1": self.more(removed)}
        self.until(lambda: cut_ring.name in self.problems("Agent"), "nobody says that a segment was cut")
        recorded["good/1"] = self.more(good)
        self.until(lambda: {client: self.counts()[client] for client in recorded} == recorded, f"not all of {recorded} is there")
        self.assertIsNone(hostile.poll())
        self.until(lambda: "hostile/1" in self.problems("Agent"), "nobody says who floods")
