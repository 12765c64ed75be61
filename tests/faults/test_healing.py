"""What a process added to an updown is gone when it dies, exactly, whoever else is killed meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS, until
from tests.services import Services

HOLD = """
import sys
from taba import client
client.start(sys.argv[1])
busy = client.updown("busy", description="requests in flight")
for _ in range(int(sys.argv[2])):
    busy.inc()
busy.dec(0.5); busy.inc(0.5)
print("held", flush=True)
for line in sys.stdin:
    busy.dec(float(line))
"""


@pytest.mark.real
@pytest.mark.takes(seconds=30)
class HealingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.services.start_server()
        self.services.start_agent()

    def hold(self, client: str, amount: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, client, str(amount)]
        process = subprocess.Popen(command, env=self.services.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end, process)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "held\n")
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def value(self) -> Any:
        found = self.services.query.aggregates(name="busy")
        return found["busy"]["value"] if "busy" in found else None

    def expect(self, value: float) -> None:
        until(lambda: self.value() == value, lambda: f"the value is {self.value()}, and should be {value}")

    def test_a_killed_worker_a_stopped_one_and_one_that_goes_on(self) -> None:
        killed, stopped, other = self.hold("web/1", 3), self.hold("web/2", 4), self.hold("web/2", 5)
        self.expect(12)
        killed.send_signal(signal.SIGKILL)
        self.expect(9)
        assert stopped.stdin is not None and other.stdin is not None
        stopped.stdin.close()
        self.expect(5)
        other.stdin.write("2\n")
        other.stdin.flush()
        self.expect(3)
        self.end(other)
        self.expect(0)
        agent = self.services.agent_query
        until(lambda: agent.status()["recorded"] == 19, agent.status)
        until(lambda: self.services.query.status()["folded"] == 19, self.services.query.status)
        self.assertTrue(self.services.query.status()["handlers"]["UpDown"]["absolute"])

    def test_what_dies_while_the_agent_is_dead_is_gone_at_its_return(self) -> None:
        killed, other = self.hold("web/1", 3), self.hold("web/2", 4)
        self.expect(7)
        self.services.kill_agent()
        self.end(killed)
        assert other.stdin is not None
        other.stdin.write("1\n")
        other.stdin.flush()
        self.services.start_agent()
        self.expect(3)

    def test_servers_and_agents_that_are_killed_change_no_sum(self) -> None:
        workers = [self.hold(f"web/{number}", number) for number in range(1, 4)]
        self.expect(6)
        for number, kill in enumerate((self.services.kill_server, self.services.kill_agent, self.services.kill_server)):
            assert workers[2].stdin is not None
            workers[2].stdin.write("0.5\n")
            workers[2].stdin.flush()
            kill()
            if number == 0:
                self.end(workers[0])
            if kill == self.services.kill_agent:
                self.services.start_agent()
            else:
                self.services.start_server()
        self.expect(3.5)
