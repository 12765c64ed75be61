"""Who lives, and what a Tab is, through real processes that are killed, and buckets that move."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.names import ALIVE_TAB, PROCESS_TAB, STARTS_TAB
from tests.patience import PATIENCE_SECONDS, until
from tests.services import ROOT, Services
from tests.stores import borrow

WORK = """
import sys
from taba import client
client.start(sys.argv[1])
hits = client.counter("hits", unit="1", description=sys.argv[2])
hits.inc()
print("recorded", flush=True)
for line in sys.stdin:
    hits.inc()
    print("recorded", flush=True)
"""


@pytest.mark.real
@pytest.mark.takes(seconds=45)
class Who(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def work(self, client: str, description: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORK, client, description]
        process = subprocess.Popen(command, env=self.services.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.addCleanup(self.end, process)
        self.recorded(process)
        return process

    def recorded(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "recorded\n")

    def end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def lives(self) -> dict[str, Any]:
        """Client → whether it lives; None where nothing is known any more."""
        found = self.services.query.projections(name=ALIVE_TAB).get(ALIVE_TAB, {})
        return {client: shown["value"] for client, shown in found.items()}

    def starts(self) -> dict[str, int]:
        """By Client how often a process of it was started."""
        found = self.services.query.projections(name=STARTS_TAB).get(STARTS_TAB, {})
        return {client: shown["distinct"] for client, shown in found.items()}

    def expect_lives(self, lives: dict[str, int]) -> None:
        until(lambda: self.lives() == lives, lambda: f"{self.lives()} live, and {lives} should")

    def test_a_process_lives_until_it_is_killed_and_lives_again_and_is_in_no_count(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        first, second = self.work("web/1"), self.work("web/2")
        self.expect_lives({"web/1": 1, "web/2": 1})
        first.kill()
        self.expect_lives({"web/1": 0, "web/2": 1})
        listed = self.services.taba("clients", "--alive")
        self.assertEqual((listed.returncode, listed.stdout), (0, "web/2\n"), listed.stderr)
        self.assertEqual(self.services.taba("clients").stdout, "web/1\nweb/2\n")
        self.work("web/1")
        self.expect_lives({"web/1": 1, "web/2": 1})
        self.services.kill_agent()
        second.kill()
        self.services.start_agent()
        self.expect_lives({"web/1": 1, "web/2": 0})
        until(lambda: self.services.query.status()["folded"] == 3, "what was recorded is not folded")
        self.assertEqual(self.services.query.names(), ["hits"])
        self.assertEqual(list(self.services.query.aggregates()), ["hits"])
        self.assertLessEqual({ALIVE_TAB, PROCESS_TAB, STARTS_TAB}, set(self.services.query.names(match="taba.*")))
        until(lambda: self.starts() == {"web/1": 2, "web/2": 1}, lambda: f"{self.starts()} were started")
        facts = {client: found["value"] for client, found in self.services.query.projections(name=PROCESS_TAB)[PROCESS_TAB].items()}
        self.assertEqual({client: found["processes"] for client, found in facts.items()}, {"web/1": 1, "web/2": 0})
        self.assertEqual(self.services.query.status()["dead_letters"], 0)

    def test_what_a_tab_is_survives_kills_and_moves_with_its_bucket(self) -> None:
        first, second = borrow(self, tcp=True), borrow(self, tcp=True)
        self.services.start_server("--buckets", "2", store=first.url)
        process = self.work("web/1", "before any Agent")
        self.services.start_agent()
        until(lambda: self.description() == "before any Agent", "what the Tab is is not told")
        self.services.kill_agent()
        process.kill()
        self.work("web/1", "while none was there")
        self.services.start_agent()
        until(lambda: self.description() == "while none was there", "what the Tab is is not told")
        moved = self.services.taba("reshard", "--store", first.url, "--add", second.url, "--json")
        self.assertEqual(moved.returncode, 0, moved.stderr)
        drained = self.services.taba("reshard", "--store", first.url, "--drain", self.services.query.shards()[0]["name"], "--json")
        self.assertEqual(drained.returncode, 0, drained.stderr)
        self.assertEqual(self.description(), "while none was there")
        until(lambda: self.services.query.status()["folded"] == 2, "what was recorded is not folded")

    def description(self) -> Any:
        """What is said of `hits`, in its own words; of the unit it is always the same."""
        found = self.services.query.types(detail=True).get("hits")
        if found is None:
            return None
        self.assertEqual((found["type"], found["unit"] or "1"), ("CounterGroup", "1"))
        return found["description"]
