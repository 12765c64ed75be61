"""The demo as people run it: it shows what it should, ends by itself or when it is told, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from twisted.trial.unittest import SynchronousTestCase

pytestmark = pytest.mark.real  # the demo in full, six times

ROOT = Path(__file__).parent.parent
SHM = Path("/dev/shm")


class Demo(SynchronousTestCase):
    def setUp(self) -> None:
        # directories of the demo are made in here, so that other runs on this machine do not disturb
        self.place = tempfile.TemporaryDirectory(prefix="taba-demo-test-")
        self.addCleanup(self.place.cleanup)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "TMPDIR": self.place.name, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.kill()
        process.communicate()

    def check_that_nothing_is_left(self, agent: str) -> None:
        self.assertEqual(os.listdir(self.place.name), [])
        self.assertEqual([path.name for path in SHM.iterdir() if agent in path.name], [])
        deadline = time.monotonic() + 10
        while (left := [process for process in psutil.process_iter(["environ"]) if self.belongs(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(left, [])

    def belongs(self, process: psutil.Process) -> bool:
        return self.place.name in ((process.info["environ"] or {}).get("TMPDIR") or "")

    def agent_of(self, said: str) -> str:
        return next(line.split()[1] for line in said.splitlines() if line.startswith("Agent "))

    def test_it_prints_the_final_aggregates_once_and_leaves_nothing_behind(self) -> None:
        process = self.start("--seconds", "6", "--once")
        out, said = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, said)
        aggregates = json.loads(out)
        requests = aggregates["web.requests"]["pct"]["count"]
        self.assertGreater(requests, 20)
        # counted by the four workers, and by who asked them: the same, to the last one
        self.assertEqual(requests, aggregates["load.requests"]["pct"]["count"])
        self.assertEqual(requests, sum(content["1d"]["count"] for name, content in aggregates.items() if name.startswith("web.seconds{")))
        self.assertEqual(aggregates["web.requests_in_flight"], {"value": 0})
        self.assertEqual(aggregates["web.index_files"]["clients"], 1)
        self.assertGreater(aggregates["host.memory_percent"]["average"], 0)
        self.assertNotIn("load.failures", aggregates)
        self.check_that_nothing_is_left(self.agent_of(said))

    def test_wrong_seconds_are_named_with_what_they_take(self) -> None:
        for wrong in ("x", "0", "nan"):
            process = self.start("--seconds", wrong)
            _, said = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 2)
            self.assertIn(f"--seconds: '{wrong}': takes 1 to 86400 seconds", said)

    def test_told_to_end_it_leaves_nothing_behind_at_any_moment(self) -> None:
        for number, moment, code in ((signal.SIGTERM, "Server ", 143), (signal.SIGINT, "0 requests", 0)):
            process = self.start()
            assert process.stdout is not None
            out = ""
            while moment not in out:
                out += (line := process.stdout.readline())
                self.assertTrue(line, out)
            process.send_signal(number)
            rest, said = process.communicate(timeout=60)
            self.assertEqual(process.returncode, code, said)
            out += rest
            self.check_that_nothing_is_left(self.agent_of(out) if "Agent " in out else "no such name")

    def test_killed_it_leaves_nothing_behind_either(self) -> None:
        process = self.start("--once")
        said = ""
        while "load and vital signs" not in said:
            assert process.stderr is not None
            said += process.stderr.readline()
        process.kill()
        deadline = time.monotonic() + 40
        while os.listdir(self.place.name) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.check_that_nothing_is_left(self.agent_of(said))
