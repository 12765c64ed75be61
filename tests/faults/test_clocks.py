"""The wall clocks of single processes are set while they run: nothing stands still, is lost or counts twice."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.clock import WallClock
from tests.services import Services
from tests.valkey import EphemeralValkey

pytestmark = pytest.mark.real  # clocks that are set while processes run

HOUR = 3600.0
PATIENCE_SECONDS = 60.0
RECORD = "import sys; from taba import client; client.start('web/1'); client.tab('hits', type='TotalsCounter').record(float(sys.argv[1]))"


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class ClockCase(SynchronousTestCase):
    """Services, and a wall clock that can be set."""

    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.clock = WallClock()
        self.addCleanup(self.clock.remove)
        self.clock.check()

    def record(self, amount: int) -> None:
        done = self.services.run("-c", RECORD, str(amount))
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def total(self) -> Any:
        found = self.services.query.projections(name="hits")
        return found["hits"]["web/1"]["total"] if "hits" in found else 0

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.services.server_url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.HTTPError, OSError):
            return False


class AgentsClock(ClockCase):
    def test_set_by_an_hour_either_way_or_to_1970_events_go_on(self) -> None:
        self.services.clocks["agent"] = self.clock
        self.services.start_server()
        self.services.start_agent()
        self.record(1)
        until(lambda: self.total() == 1, "before")
        for number, offset in enumerate((-HOUR, HOUR, -time.time(), 0.0), start=2):
            self.clock.offset = offset
            self.record(1)
            until(lambda number=number: self.total() == number, f"the clock is off by {offset}")  # type: ignore[misc]


class ServersClock(ClockCase):
    def check_set_back_while_the_store_is_away(self, *options: str) -> None:
        valkey = EphemeralValkey(tcp=True)
        self.addCleanup(valkey.remove)
        self.services.clocks["server"] = self.clock
        self.services.start_server(*options, store=valkey.url)
        self.services.start_agent()
        self.record(1)
        until(lambda: self.total() == 1, "before")
        valkey.kill()
        until(lambda: not self.is_ready(), "the store is away")
        self.clock.offset = -HOUR
        time.sleep(3.0)  # as long as the store is away
        valkey.start()
        until(self.is_ready, "the store is back")
        self.record(1)
        until(lambda: self.total() == 2, "after")

    def test_set_back_by_an_hour_while_the_store_is_away_it_comes_back_with_the_store(self) -> None:
        self.check_set_back_while_the_store_is_away()

    def test_so_do_workers(self) -> None:
        self.check_set_back_while_the_store_is_away("--workers", "2")


class Waiting(ClockCase):
    def check_waits_while_the_clock_is(self, offset: float) -> None:
        """What an Agent recorded under such a clock, with no Server there, is all folded, and nothing counts as dropped."""
        self.services.clocks["agent"] = self.clock
        self.services.start_server()
        self.services.start_agent()
        self.record(1)
        until(lambda: self.total() == 1, "before")
        self.services.kill_server()
        self.record(1)
        self.clock.offset = offset
        self.record(1)
        self.services.kill_agent()
        self.services.start_agent()
        self.record(1)
        self.clock.offset = 0.0
        self.record(1)
        self.services.start_server()
        until(lambda: self.total() == 5, "after")
        with urllib.request.urlopen(f"{self.services.agent_url}/v1/status", timeout=5) as answer:
            self.assertEqual(json.load(answer)["dropped_by_reason"], {})

    def test_eight_days_ahead_for_a_while_nothing_is_too_old(self) -> None:
        self.check_waits_while_the_clock_is(8 * 24 * HOUR)

    def test_nor_in_1970(self) -> None:
        self.check_waits_while_the_clock_is(-time.time())
