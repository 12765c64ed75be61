"""An Agent whose table of descriptors is full: it is said, nothing is lost, and all goes on once there is room."""

from __future__ import annotations

import resource

import pytest

from tests.patience import until

from .job import ShortJob


@pytest.mark.real
class FullTable(ShortJob):
    def test_an_agent_that_can_open_no_ring_says_so_in_its_log_and_reads_all_of_them_once_it_can(self) -> None:
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
        resource.prlimit(agent, resource.RLIMIT_NOFILE, before)
        self.end_recorders(recorders)
        self.assert_exact(8_000)
        self.until(lambda: "descriptors" not in self.problems("Agent"), "what is mended is still said")
