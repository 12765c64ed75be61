"""P8, says so: what is lost, refused, full or unreachable is a sentence in the status, the command and the log; no sentence, no trouble."""

from __future__ import annotations

import pytest

from tests.stores import borrow

from .job import Job, ShortJob

RECORD = """
import sys
from taba import client
client.start(sys.argv[1])
client.counter("hits").inc()
client.tab("odd", type="NoSuchType").record(1)
"""
SLOW = "from record to visible"


class Logged(Job):
    def told(self, part: str, words: str) -> str:
        """What the log of a part says after these words."""
        lines = (self.services.directory / f"{part}.log").read_text().splitlines()
        return "\n".join(line.partition(words)[2] for line in lines)


@pytest.mark.takes(seconds=15)
class SaysSo(Logged):
    tabs, buckets = ShortJob.tabs, ShortJob.buckets

    def test_a_server_that_is_away_and_a_type_that_nobody_has_are_said_and_what_is_mended_is_said_no_more(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.run_recorders(8_000)
        self.assert_exact(8_000)
        # where the machine is so busy that it took long from record to visible, that is said for a minute
        self.until(lambda: all(SLOW in problem for problem in self.problems("Server").splitlines()), "a healthy Server sees a problem")
        self.until(lambda: not self.problems("Agent"), "a healthy Agent sees a problem")

        self.services.kill_server()
        done = self.services.run("-c", RECORD, "web/1")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.until(lambda: self.services.server_url in self.problems("Agent"), "the Server's absence is not said")
        self.until(lambda: self.services.server_url in self.told("agent", "problem: "), "the log does not say it")
        told = self.services.taba("status", "--server", self.services.agent_url)
        self.assertIn(self.services.server_url, told.stdout + told.stderr)

        self.services.start_server()
        self.until(lambda: "NoSuchType" in self.problems("Server"), "the missing Type is not said")
        self.assertIn("NoSuchType", self.services.taba("status").stdout)
        self.until(lambda: self.services.server_url not in self.problems("Agent"), "what is mended is still said")
        self.until(
            lambda: self.services.server_url in self.told("agent", "no problem any more: "), "the log does not say that it is mended"
        )
        self.until(lambda: self.services.query.aggregate("hits")["1d"]["count"] == 1, "what was recorded while it was away is not there")


@pytest.mark.real
@pytest.mark.takes(seconds=15)
class FullStore(Logged):
    def test_a_store_whose_memory_is_full_is_said_and_what_was_recorded_meanwhile_is_there_once_it_is_not(self) -> None:
        valkey = borrow(self, tcp=True)
        self.services.start_server(store=valkey.url)
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(16_000, pause=0.0, file=enough)
        self.wait_for(8_000)
        valkey.call("CONFIG", "SET", "maxmemory", "1kb")
        enough.touch()
        self.end_recorders(recorders)
        self.until(lambda: "raise maxmemory" in self.problems("Server"), "nobody says that the store is full")
        self.until(lambda: "raise maxmemory" in self.told("server", "problem: "), "the log does not say it")
        self.assertLess(self.folded(), 16_000)
        valkey.call("CONFIG", "SET", "maxmemory", "0")
        self.assert_exact(16_000)
        self.until(lambda: "raise maxmemory" not in self.problems("Server"), "what is mended is still said")
