"""Out of a process that ends at once: what its last record call completed is there, whatever ends it, in whatever namespaces it lived."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.patience import PATIENCE_SECONDS
from tests.services import Services

pytestmark = pytest.mark.real

APART = 50  # of these in namespaces of their own, whose last process takes them with it
FORKED, EACH = 250, 4  # processes that are forked from one that imported before, as a job worker's are, and how many events each has

JOB = """
import os, signal
from taba import client
client.counter("jobs").inc()
client.tab("job_names", type="Cardinality").record(os.environ["JOB"])
os.kill(os.getpid(), signal.SIGKILL)
"""

# a shared /dev/shm, and hardly more processes at a time than a host with as many cores would have
STORM = """
import os, signal, sys
from taba import client
jobs, took = client.counter("forked"), client.percentile("took")
for number in range(int(sys.argv[1])):
    if not (child := os.fork()):
        jobs.inc(); jobs.inc(); took.observe(0.5)
        client.tab("numbers", type="Cardinality").record(str(number))
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


def namespaces() -> list[str]:
    """The words before a command that has processes, network, host name and IPC of its own, as a container with a shared /dev/shm."""
    if shutil.which("unshare") is None:
        raise SkipTest("needs the program unshare")
    own = ["unshare", "--pid", "--fork", "--net", "--uts", "--ipc", "--mount"]
    alone = own if os.getuid() == 0 else [*own[:1], "--user", "--map-current-user", *own[1:]]
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if tried.returncode:
        raise SkipTest(f"needs namespaces of its own: {tried.stderr.strip()}")
    return [*alone, "sh", "-c", '"$@"; exit $?', "sh"]  # the first process there would not die of its own signal


@pytest.mark.takes(seconds=30)
class ShortLives(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.services.start_server()
        self.services.start_agent()

    def wait(self, is_right: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_right():
            self.assertLess(time.monotonic(), deadline, f"{self.services.agent_query.status()}")
            time.sleep(0.1)

    def folded(self) -> int:
        return int(self.services.query.status()["folded"])

    def windows(self, name: str) -> dict[str, Any]:
        found = self.services.query.aggregate(name)
        assert found is not None
        return dict(found["1h"])

    def run_job(self, name: str, *before: str) -> None:
        environ = {**self.services.environ, "JOB": name}
        done = subprocess.run([*before, sys.executable, "-c", JOB], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertIn(done.returncode, (-9, 137), done.stderr)  # 137: what a shell says of it

    def test_jobs_killed_right_after_their_record_in_namespaces_of_their_own_or_none(self) -> None:
        apart = namespaces()
        for number in range(4):
            self.run_job(f"plain {number}")
            self.run_job(f"apart {number}", *apart)
        self.wait(lambda: self.folded() == 16)
        self.assertEqual(self.windows("jobs")["total"], 8)
        self.assertEqual(self.services.query.aggregate("job_names"), {"distinct": 8})
        self.assertEqual(self.services.agent_query.status()["dropped_by_reason"], {})

    def test_hundreds_of_forked_ones_one_after_the_other_also_in_namespaces_that_end_with_them(self) -> None:
        for before, number in (([], FORKED), (namespaces(), APART)):
            storm = [*before, sys.executable, "-c", STORM, str(number)]
            done = subprocess.run(storm, env=self.services.environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual(done.returncode, 0, done.stderr)
        number = FORKED + APART
        self.wait(lambda: self.folded() == number * EACH)
        self.assertEqual((self.windows("forked")["total"], self.windows("took")["count"]), (2 * number, number))
        self.assertEqual(self.services.agent_query.status()["dropped_by_reason"], {})
        # their rings are given back as they come: the next thousand find room
        self.wait(lambda: self.services.agent_query.status()["rings_open"] == 0)
