"""P8, says so: what is lost, refused, full or unreachable is a sentence in the status, the command and the log; no sentence, no trouble."""

from __future__ import annotations

from .job import Job

RECORD = """
import sys
from taba import client
client.start(sys.argv[1])
client.counter("hits").inc()
client.tab("odd", type="NoSuchType").record(1)
"""


class SaysSo(Job):
    def test_a_server_that_is_away_and_a_type_that_nobody_has_are_said_and_what_is_mended_is_said_no_more(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.run_recorders(8_000)
        self.assert_exact(8_000)
        # where the machine is so busy that it took long from record to visible, that is said for a minute; nothing else is
        found = self.services.query.status()["problems"]
        self.assertEqual([problem for problem in found if "from record to visible" not in problem], [])
        self.until(lambda: not self.problems("Server"), "a healthy Server sees a problem")
        self.until(lambda: not self.problems("Agent"), "a healthy Agent sees a problem")

        self.services.kill_server()
        done = self.services.run("-c", RECORD, "web/1")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.until(lambda: self.services.server_url in self.problems("Agent"), "the Server's absence is not said")
        told = self.services.taba("status", "--server", self.services.agent_url)
        self.assertIn(self.services.server_url, told.stdout + told.stderr)

        self.services.start_server()
        self.until(lambda: "NoSuchType" in self.problems("Server"), "the missing Type is not said")
        self.assertIn("NoSuchType", self.services.taba("status").stdout)
        self.until(lambda: self.services.server_url not in self.problems("Agent"), "what is mended is still said")
        self.assertEqual(self.services.query.aggregate("hits")["1d"]["count"], 1)
