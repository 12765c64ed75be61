"""A table of descriptors that is full, an Agent's, a Server's or an application's: it is said, what is dropped is counted, and all goes on
once there is room."""

from __future__ import annotations

import json
import resource
from http.client import HTTPConnection

import pytest

from tests.patience import PATIENCE_SECONDS, until
from tests.stores import borrow

from .job import ShortJob

# records into its ring, takes all descriptors that it may have, records on, and forks a child that has no ring until it closes them
APPLICATION = """
import json, logging, os, sys
from taba import client
client.start("full/1")
hits = client.tab("hits", type="TotalsCounter")
hits.record(1)
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for number in range(1000):
    hits.record(1)
told = [client.stats()]
read, write = taken.pop(), taken.pop()
os.close(read), os.close(write)
read, write = os.pipe()
child = os.fork()
if child:
    os.waitpid(child, 0)
    told += map(json.loads, os.read(read, 65536).splitlines())
    print(json.dumps(told))
    sys.exit()
for number in range(100):
    hits.record(1)
client.tab("hits", type="TotalsCounter")
said = [client.stats()]
for descriptor in taken:
    os.close(descriptor)
while not client.stats()["recorded"]:  # it looks again once a second
    hits.record(1)
said.append(client.stats())
os.write(write, "\\n".join(map(json.dumps, said)).encode())
os._exit(0)
"""


@pytest.mark.real
@pytest.mark.takes(seconds=45)
class FullTable(ShortJob):
    def test_an_agent_that_can_open_no_ring_and_no_connection_says_so_in_its_log_and_does_once_it_can(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.until(lambda: self.services.agent_query.status()["buckets"], "the Agent met no Server")
        agent, log = self.services.pid("agent"), self.services.directory / "agent.log"
        before = resource.prlimit(agent, resource.RLIMIT_NOFILE)
        resource.prlimit(agent, resource.RLIMIT_NOFILE, (0, before[1]))  # what is open stays so, and nothing more is opened
        recorders = self.start_recorders(8_000, pause=0.0)
        # who asks for its status now is not accepted, either
        said = "raise the Agent's limit of descriptors"
        until(lambda: said in log.read_text(errors="replace"), "nobody says that the table is full")
        self.services.kill_server()  # and with it the connections that were open
        self.services.start_server()
        resource.prlimit(agent, resource.RLIMIT_NOFILE, before)
        self.end_recorders(recorders)
        self.assert_exact(8_000)
        self.until(lambda: "descriptors" not in self.problems("Agent"), "what is mended is still said")

    def test_an_application_with_a_full_table_records_on_and_what_a_child_without_a_ring_drops_is_counted_and_said(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        done = self.services.run("-c", APPLICATION)
        self.assertEqual(done.returncode, 0, done.stderr)
        has, had_none, then = json.loads(done.stdout)
        self.assertEqual((has["recorded"], has["dropped"], has["problem"]), (1001, 0, None))
        self.assertEqual((had_none["recorded"], had_none["dropped_by_reason"]), (0, {"no_ring": 100}))
        self.assertIn("Too many open files", had_none["problem"])
        self.assertIn(f"no ring can be made: {had_none['problem']}", done.stderr)  # its log
        self.assertEqual((then["recorded"], then["problem"]), (1, None))
        drops = then["dropped_by_reason"]
        self.assertEqual(self.wait_for(1002)["folded"], 1002)
        self.until(lambda: self.services.agent_query.status()["dropped_by_reason"] == drops, f"the Agent does not count {drops}")
        self.assertEqual(self.services.agent_query.status()["recorded"], 1002 + drops["no_ring"])
        self.until(lambda: "limit of descriptors" in self.problems("Agent"), "nobody says it")

    def test_a_server_that_can_open_no_connection_says_so_to_those_who_are_in_and_goes_on_once_it_can(self) -> None:
        """Its store goes away meanwhile, so that it has to open some; others wait to be let in."""
        valkey = borrow(self, tcp=True)
        self.services.start_server(store=valkey.url)
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(8_000, pause=0.0, file=enough)
        self.wait_for(4_000)
        server, log = self.services.pid("server"), self.services.directory / "server.log"
        within = HTTPConnection("127.0.0.1", self.services.server_port, timeout=PATIENCE_SECONDS)
        self.addCleanup(within.close)
        self.assertEqual(ask(within, "/readyz")[0], 200)
        before = resource.prlimit(server, resource.RLIMIT_NOFILE)
        resource.prlimit(server, resource.RLIMIT_NOFILE, (0, before[1]))
        valkey.kill()
        valkey.start()
        enough.touch()
        outside = HTTPConnection("127.0.0.1", self.services.server_port, timeout=PATIENCE_SECONDS)
        self.addCleanup(outside.close)
        outside.connect()  # the kernel takes it, and there it waits
        outside.request("GET", "/healthz")
        said = "limit of descriptors (LimitNOFILE, ulimit -n)"
        until(lambda: said in ask(within, "/v1/status")[1], lambda: f"nobody says that the table is full: {log.read_text()[-3000:]}")
        until(lambda: said in ask(within, "/readyz")[1], "who asks whether it is ready does not hear why not")
        until(lambda: "this Server has all the 0 files" in log.read_text(errors="replace"), "its log does not say so")
        resource.prlimit(server, resource.RLIMIT_NOFILE, before)
        self.assertEqual(outside.getresponse().status, 200)
        self.end_recorders(recorders)
        self.assert_exact(8_000)
        self.until(lambda: "descriptors" not in self.problems("Server"), "what is mended is still said")
        self.assertNotIn("EMFILE", log.read_text(errors="replace"))  # a line for each try to accept


def ask(connection: HTTPConnection, path: str) -> tuple[int, str]:
    """Status and body, over a connection that stays."""
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
