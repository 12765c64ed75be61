"""P5, one bad part harms nobody else: it is isolated, counted and said, its bytes are kept, and the rest works on."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from taba import names
from taba.agent.outbox import MIN_OUTBOX_BYTES
from taba.query import ServerUnavailable
from taba.server import keys
from tests.patience import PATIENCE_SECONDS
from tests.stores import borrow

from ..services import ROOT, SHM
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
# one event of a Tab that counts, and one of one that holds a value
ONCE = """
import sys
from taba import client
client.start(sys.argv[1])
client.tab("hits", type="TotalsCounter").record(1)
client.gauge("depth").set(17)
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


@pytest.mark.takes(seconds=15)
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
@pytest.mark.takes(seconds=35)
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
@pytest.mark.takes(seconds=50)
class Damaged(ShortJob):
    """What lies on a disk, or in a store, and is not as it was written, or is of a later version."""

    def much(self, events: int) -> int:
        self.record_texts("much/1", events)
        return events

    def spool(self) -> sqlite3.Connection:
        (path,) = (self.services.directory / "spool").glob("*.spool")
        return sqlite3.connect(path, timeout=PATIENCE_SECONDS)

    def test_a_record_of_the_spool_that_was_spoilt_is_counted_said_and_kept_and_the_rest_is_folded(self) -> None:
        self.services.start_server()
        self.services.start_agent("--outbox-bytes", str(MIN_OUTBOX_BYTES))
        recorded = self.much(1)
        self.wait_for(recorded)
        self.services.kill_server()
        recorded += sum(self.much(800) for _ in range(5))

        def spooled() -> int:
            with contextlib.closing(self.spool()) as database:
                return int(database.execute("SELECT count(*) FROM batches").fetchone()[0])

        self.until(spooled, "nothing goes to the disk")
        self.services.kill_agent()
        with contextlib.closing(self.spool()) as database, database:
            row, events, content = database.execute("SELECT id, events, content FROM batches ORDER BY events DESC LIMIT 1").fetchone()
            spoilt = bytearray(content)
            spoilt[len(spoilt) // 2] ^= 1
            database.execute("UPDATE batches SET content = ? WHERE id = ?", (bytes(spoilt), row))
        self.services.start_agent()
        self.services.start_server()
        self.assertEqual(self.wait_for(recorded - events)["folded"], recorded - events)
        self.until(lambda: self.services.agent_query.status()["dropped_by_reason"] == {"spool_corrupt": events}, "nobody counts it")
        self.until(lambda: f"{events} events" in self.problems("Agent") and "look at its disk" in self.problems("Agent"), "nobody says it")
        self.until(lambda: not spooled(), "the spool is not emptied")
        with contextlib.closing(self.spool()) as database:
            self.assertEqual(database.execute("SELECT content FROM aside").fetchall(), [(bytes(spoilt),)])

    def test_an_outbox_that_somebody_cuts_ends_nobody_and_every_event_is_folded_or_its_drop_counted_and_said(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorded = self.much(1)
        self.wait_for(recorded)
        self.services.kill_server()
        recorded += self.much(1000)
        self.until(lambda: self.services.agent_query.status()["recorded"] == recorded, "not all is in the outbox")
        os.truncate(SHM / f"taba-agent.{self.services.agent}", 8192)  # without nearly all that waits there
        recorded += self.much(1000)
        self.services.start_server()

        def dropped() -> int:
            status = self.services.agent_query.status()
            return int(sum(status["dropped_by_reason"].values())) if status["recorded"] == recorded else 0

        self.until(lambda: (lost := dropped()) and self.folded() + lost >= recorded, "not all is folded, or counted")
        lost = dropped()
        self.assertEqual(self.folded() + lost, recorded, self.story())
        self.until(lambda: f"{lost} events dropped as" in self.problems("Agent"), "nobody says it")
        self.until(lambda: "cut, " in self.problems("Agent"), "nobody says why")
        log = self.services._child("agent").log.read_text()
        self.assertNotIn("Traceback", log)  # what is left of it goes its way as ever
        # the store has lost nothing, though what others follow was refused
        self.assertNotIn("went back in time", self.problems("Server"))
        self.assertIsNone(self.services._child("agent").process.poll())

    def test_one_that_is_cut_to_nothing_is_found_by_the_next_agent_and_what_comes_later_survives_a_kill(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorded = self.much(1)
        self.wait_for(recorded)
        outbox = SHM / f"taba-agent.{self.services.agent}"
        size = outbox.stat().st_size
        os.truncate(outbox, 0)
        self.until(lambda: outbox.stat().st_size == size, "it is not whole again")
        recorded += self.much(100)  # which has a lane of its own: nothing waits, and what is retained is gone
        self.wait_for(recorded)
        self.services.kill_server()
        recorded += self.much(1000)
        self.until(lambda: self.services.agent_query.status()["recorded"] == recorded, "not all is in the outbox")
        self.services.kill_agent()
        self.services.start_agent()
        self.services.start_server()

        def said() -> bool:
            return "the outbox was unreadable" in self.problems("Agent")

        self.until(lambda: said() or self.folded() >= recorded, "it is neither folded nor said")
        if not said():  # what was retained as it was cut had gone before the kill
            self.assertEqual(self.folded(), recorded, self.story())

    def test_a_state_of_a_later_version_is_left_as_it_is_and_what_comes_for_it_is_a_dead_letter(self) -> None:
        valkey = borrow(self, tcp=True)
        self.services.start_server(store=valkey.url)
        self.services.start_agent()

        def record(client: str, folded: int) -> None:
            done = self.services.run("-c", ONCE, client)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.wait_for(folded)

        record("later/1", 2)
        record("good/1", 4)
        where = keys.states(names.bucket_of("hits", self.buckets)), keys.state_field("hits", "later/1")
        state = keys.unframe(valkey.call("HGET", *where))
        later = keys.frame(state.version + 1, state.age) + b"what nobody can read yet"
        valkey.call("HSET", *where, later)
        record("later/1", 5)  # its gauge is folded, its count is not
        record("good/1", 7)
        status = self.counted()
        self.assertEqual((status["folded"], status["dead_letters_by_reason"]), (7, {"newer_state": 1}))
        self.assertEqual(valkey.call("HGET", *where), later)
        shown = self.services.query.projections(name="hits")["hits"]
        self.assertEqual(shown["good/1"]["count"], 2)
        self.assertIn("error", shown["later/1"])  # never "none" of what is there
        self.assertIn("error", self.services.query.aggregates(name="hits")["hits"])
        self.assertIn("1 event is a dead letter", self.problems("Server"))


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
