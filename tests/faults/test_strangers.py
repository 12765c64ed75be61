"""Strangers at a real Server: a crowd of connections that mean harm, and the largest requests of the worst shapes."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks.strangers import Shape, shapes
from taba.calls import MAX_BODY_BYTES
from taba.connections import MAX_HALL_OF_PEER
from tests.faults.crowd import CROWD, STRANGER
from tests.faults.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

MOST = 8  # times its bound, that a request may take of memory
WORST = (  # of each way that makes much of what came
    "an envelope that is lists in a list",
    "values that are lists in lists",
    "values that are nothing",
    "columns of one event",
    "columns that are none",
    "JSON: small events",
    "JSON: lists in lists",
    "JSON: objects of many keys",
    "JSON: events that are none",
)


@pytest.mark.real
class Crowded(SynchronousTestCase):
    def test_a_thousand_connections_of_one_host_that_idle_drip_or_do_not_read_keep_nobody_else_waiting(self) -> None:
        alone = ["unshare", "-n"] if not os.geteuid() else ["unshare", "-rn"]
        if subprocess.run([*alone, "true"], capture_output=True).returncode:
            raise SkipTest("a network of its own takes root, or a kernel that lets users have one")
        command = [*alone, sys.executable, "-m", "tests.faults.crowd"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        told = json.loads(done.stdout)
        self.assertEqual(told["found"], {"here 200": 20, "friend 200": 20})
        cut = told["listening"]["cut"]
        self.assertGreaterEqual(told["made"], CROWD)
        self.assertGreaterEqual(cut["too_many_of_peer"], CROWD - 2 * MAX_HALL_OF_PEER)
        self.assertEqual(cut.get("hall_full", 0), 0)  # it takes from nobody but itself
        self.assertIn(f"at once of {STRANGER} waited without a whole request", "\n".join(told["problems"]))


@pytest.mark.real
class Large(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.services.pid('server')}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def post(self, shape: Shape) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self.services.server_port, timeout=PATIENCE_SECONDS)) as connection:
            headers = {"Content-Type": shape.kind, "Content-Encoding": "deflate"}
            connection.request(shape.method, shape.path, zlib.compress(shape.body, 1), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def test_a_request_of_any_of_the_worst_shapes_takes_eight_times_its_bound_of_memory_at_the_most(self) -> None:
        self.services.start_server()
        chosen = [shape for shape in shapes() if shape.name in WORST]
        self.assertEqual(len(chosen), len(WORST))
        self.post(Shape("", "POST", "/v1/events", b'{"client": "a", "events": []}', "application/json"))  # what is imported once is
        for shape in chosen:
            Path(f"/proc/{self.services.pid('server')}/clear_refs").write_text("5")  # the peak is what it has now
            before = self.memory("VmRSS")
            self.assertIn(self.post(shape), (200, 400), shape.name)
            self.assertLess(self.memory("VmHWM") - before, MOST * MAX_BODY_BYTES, shape.name)
