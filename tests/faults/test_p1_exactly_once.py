"""P1, exactly once: kill -9 to any part, at any moment, any number of times, and every event that was recorded counts once."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taba.agent.outbox import MIN_OUTBOX_BYTES
from tests.patience import PATIENCE_SECONDS
from tests.stores import borrow
from tests.valkey import EphemeralValkey

from ..services import ROOT, SHM, USUAL_BUCKETS
from .job import Job, ShortJob

SOAK_SECONDS = 1800.0  # it only ends a hang
WAVES, CHILDREN = 10, 20
COPIED = 9_000  # of 16,000 events, that recorders record before they wait: half, and what parents do before they fork
# goes up, and once it is told to records for as long as it lives, no faster than a small ring is read
HOLD = """
import sys, time
from taba import client
client.start("host/1")
busy, texts = client.updown("busy"), client.tab("texts", type="Noop")
for _ in range(3):
    busy.inc()
for line in sys.stdin:
    while True:
        for number in range(50):
            texts.record("x" * 2000)
        time.sleep(0.02)
"""
# forks wave after wave of processes that live for one event, each with a child that does the same
STORM = """
import os, sys
from taba import client

def record():
    before = client.stats()
    storm.record(1)
    assert client.stats()["dropped"] == before["dropped"], client.stats()

def child(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def end(pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

def fork_once_more():
    record()
    end([child(record)])

client.start("storm/1")
storm = client.tab("storm", type="TotalsCounter")
record()
for wave in range(int(sys.argv[1])):
    end([child(fork_once_more) for number in range(int(sys.argv[2]))])
"""


@pytest.mark.takes(seconds=15)
class ExactlyOnce(ShortJob):
    buckets = USUAL_BUCKETS

    def test_agent_server_and_store_are_each_killed_and_every_event_counts_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(20_000, pause=0.1)
        self.until(lambda: self.services.query.status()["folded"])
        self.services.kill_agent()
        self.services.start_agent()
        self.services.kill_store()
        self.services.kill_server()
        self.services.start_server()
        self.end_recorders(recorders)
        self.assert_exact(20_000)
        self.assert_rings_are_gone()


@pytest.mark.real
@pytest.mark.takes(seconds=200)
class ExactlyOnceForLong(Job):
    def test_a_million_events_of_eight_processes_are_exact_while_the_agent_is_killed_twenty_times(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(1_000_000, pause=0.15)
        for _ in range(20):
            time.sleep(0.25)  # it drains, sends or starts: wherever the kill finds it
            self.services.kill_agent()
            self.services.start_agent()
        self.end_recorders(recorders)
        self.assert_exact(1_000_000)
        self.assert_rings_are_gone()

    def test_agent_server_and_store_are_killed_in_turn_and_every_event_is_there_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(200_000, pause=0.4)
        for turn in range(6):
            time.sleep(0.4)
            if turn % 3 == 0:
                self.services.kill_agent()
                self.services.start_agent()
            elif turn % 3 == 1:
                self.services.kill_server()
                self.services.start_server()
            else:
                self.services.kill_store()
        self.end_recorders(recorders)
        self.assert_exact(200_000)

    def test_everything_is_killed_and_comes_back_in_any_order(self) -> None:
        valkey = borrow(self, tcp=True)
        start: dict[str, Callable[[], None]] = {
            "agent": self.services.start_agent,
            "server": lambda: self.services.start_server(store=valkey.url, until_it_answers=False),
            "store": valkey.start,
        }
        self.services.start_server(store=valkey.url)
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(40_000, pause=0.1, file=enough)
        self.until(lambda: self.services.query.status()["folded"])
        # each but the first before what it needs
        for order in (
            ("store", "server", "agent"),
            ("agent", "server", "store"),
            ("server", "agent", "store"),
            ("agent", "store", "server"),
        ):
            self.services.kill_agent()
            self.services.kill_server()
            valkey.kill()
            for part in order:
                start[part]()
        enough.touch()
        self.end_recorders(recorders)
        self.assert_exact(40_000)

    def test_a_store_that_goes_back_to_a_copy_under_load_has_every_event_once_from_what_the_agent_retains(self) -> None:
        """Of what it retains no more, as after a minute, on a machine that is slow, it says how much that was."""
        valkey, copy = self.copied_store(16_000)
        self.wait_for(COPIED + 1_000)
        self.go_back(valkey, copy)
        self.end_recorders(self.recorders)
        self.run_recorders(16_000)  # a bucket shows what it lost by what comes next, and all may have been folded before
        self.until(self.says_that_it_went_back, "the Server does not say that the store went back")
        self.until(lambda: self.folded() + self.gap() >= 32_000, "not all is made good, or named")
        self.assertLess(self.gap(), 16_000 - COPIED)
        if self.gap():
            self.assertEqual(self.folded() + self.gap(), 32_000, self.story())
        else:
            self.assert_exact(32_000)

    def test_of_a_store_that_goes_back_further_than_the_agent_retains_the_loss_is_named_to_the_event(self) -> None:
        valkey, copy = self.copied_store(16_000)
        self.end_recorders(self.recorders)
        self.wait_for(16_000)
        self.until(lambda: not self.services.agent_query.status()["outbox"]["retained_batches"], "it is retained for ever")
        self.go_back(valkey, copy)
        self.until(lambda: self.folded() == COPIED, "what is folded is not what the copy has")
        self.run_recorders(16_000)  # a bucket shows what it lost by what comes next
        lost = 16_000 - COPIED
        self.until(lambda: self.folded() + self.gap() >= 32_000, "not all is named")
        self.assertEqual((self.folded(), self.gap()), (32_000 - lost, lost), self.story())
        self.until(self.says_that_it_went_back, "the Server does not say that the store went back")
        self.until(lambda: f"{lost} events in" in self.problems("Agent"), "the Agent does not say how much is lost")

    def test_of_two_shards_one_goes_back_to_a_copy_and_every_event_is_there_once_or_named(self) -> None:
        """As where a part of a store is restored from a backup: the other shard has its past, and nothing of it comes twice."""
        shards = [borrow(self, tcp=True), borrow(self, tcp=True)]
        valkey, copy = self.copied_store(16_000, *shards)
        self.wait_for(COPIED + 1_000)
        self.go_back(valkey, copy)
        self.end_recorders(self.recorders)
        self.run_recorders(16_000)
        self.until(self.says_that_it_went_back, "the Server does not say that the store went back")
        self.until(lambda: self.folded() + self.gap() >= 32_000, "not all is made good, or named")
        self.assertLess(self.gap(), 16_000 - COPIED)
        self.assertEqual(self.folded() + self.gap(), 32_000, self.story())
        if not self.gap():
            self.assert_exact(32_000)
        self.assertEqual([shard["buckets"] for shard in self.services.query.shards()], [USUAL_BUCKETS // 2] * 2)

    def copied_store(self, events: int, *shards: EphemeralValkey) -> tuple[EphemeralValkey, Path]:
        """A store in use, the last of its `shards`, and a copy of that as of COPIED events, after which the recorders go on."""
        shards = shards or (borrow(self, tcp=True),)
        valkey = shards[-1]
        self.services.start_server(store="redis://" + ",".join(f"127.0.0.1:{shard.port}" for shard in shards))
        self.services.start_agent()
        enough = self.services.directory / "enough"
        self.recorders = self.start_recorders(events, pause=0.2, file=enough)
        self.assertEqual(self.wait_for(COPIED)["folded"], COPIED)
        copy = self.services.directory / "copy"
        valkey.kill()
        shutil.copytree(valkey.directory / "appendonlydir", copy)
        valkey.start()
        enough.touch()
        return valkey, copy

    def go_back(self, valkey: EphemeralValkey, copy: Path) -> None:
        valkey.kill()
        shutil.rmtree(valkey.directory / "appendonlydir")
        shutil.copytree(copy, valkey.directory / "appendonlydir")
        valkey.start()

    def gap(self) -> int:
        """How many events the Agent says that the store lost, and it could not send again; it drops none for other reasons."""
        dropped = self.services.agent_query.status()["dropped_by_reason"]
        self.assertLessEqual(set(dropped), {"gap"})
        return int(dropped.get("gap", 0))

    def test_a_host_that_boots_anew_folds_what_lay_on_its_disk_once_and_nothing_stays_up(self) -> None:
        """Its shared memory is gone, with the rings of its processes and what the Agent held there; what was in the spool is not."""
        self.services.start_server()
        self.services.start_agent("--outbox-bytes", str(MIN_OUTBOX_BYTES))
        command = [sys.executable, "-c", HOLD]
        process = subprocess.Popen(command, cwd=ROOT, env=self.services.environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdin is not None
        self.addCleanup(process.stdin.close)
        self.until(lambda: self.busy() == 3.0, "what goes up is not seen")
        folded = self.wait_for(3)["folded"]
        self.services.kill_server()
        process.stdin.write(b"more\n")
        process.stdin.flush()
        self.until(self.spooled, "nothing goes to the disk")
        process.kill()
        self.services.kill_agent()
        spooled = self.spooled()
        for segment in SHM.glob(f"taba*{self.services.agent}*"):
            segment.unlink()
        self.services.start_server()
        self.services.start_agent()
        self.assertEqual(self.wait_for(folded + spooled)["folded"], folded + spooled)
        self.until(lambda: not self.spooled(), "the spool is not emptied")
        self.until(lambda: self.busy() == 0.0, "what a process added that went with its host stays up")
        self.assertEqual(self.folded(), folded + spooled)

    def busy(self) -> float | None:
        shown = self.services.query.aggregates(name="busy")
        return float(shown["busy"]["value"]) if "busy" in shown else None

    def spooled(self) -> int:
        """How many events wait in the Agent's spool."""
        (path,) = (self.services.directory / "spool").glob("*.spool")
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT coalesce(sum(events), 0) FROM batches").fetchone()[0])

    def test_a_storm_of_forks_is_exact_while_the_agent_is_killed(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        command = [sys.executable, "-c", STORM, str(WAVES), str(CHILDREN)]
        storm = subprocess.Popen(command, cwd=ROOT, env={**self.services.environ, "TABA_RING_BYTES": "65536"})
        self.addCleanup(storm.wait)
        self.addCleanup(storm.kill)
        self.until(lambda: self.services.query.status()["folded"], "nothing of the storm arrives")
        self.services.kill_agent()
        self.services.start_agent()
        self.assertEqual(storm.wait(PATIENCE_SECONDS), 0)
        events = 1 + 2 * WAVES * CHILDREN
        self.assertEqual(self.wait_for(events)["folded"], events)
        self.assertEqual(self.services.query.aggregates(name="storm")["storm"]["total"], events)
        self.assert_rings_are_gone()

    def test_a_soak_is_exact(self) -> None:
        command = [sys.executable, "-m", "tests.faults.soak", "--minutes", "0.4", "--rate", "20000"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SOAK_SECONDS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, re.compile(r"^seed: \d+$.*^verdict: every event once; memory flat$", re.MULTILINE | re.DOTALL))
