"""A process that records a little all the time, until it is told that it is enough: for tests of what is done to the others meanwhile."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.services import Services

RECORDS = """
import select, sys, time
from taba import client
client.start("load/1")
hits = client.tab("hits", type="TotalsCounter")
count = 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(200):
        hits.record(1.0)
    count += 200
    time.sleep(0.01)
stats = client.stats()
print(count, stats["dropped"], flush=True)
"""


class Load:
    """It records into the Tab `hits` once this returns; it is gone with the test."""

    def __init__(self, test: SynchronousTestCase, services: Services):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=services.environ
        )
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        for last in (self._stdout.close, self._stdin.close, process.wait, process.kill):
            test.addCleanup(last)
        test.assertEqual(self._stdout.readline(), "begun\n")

    def end(self) -> int:
        """Have it end; how many events it recorded that its ring took."""
        self._stdin.write("enough\n")
        self._stdin.flush()
        recorded, dropped = map(int, self._stdout.readline().split())
        return recorded - dropped
