"""The wall clocks of single processes are set while they run: nothing stands still, is lost or counts twice."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.clock import WallClock
from tests.patience import until
from tests.services import Services
from tests.stores import borrow
from tests.valkey import EphemeralValkey

pytestmark = pytest.mark.real  # clocks that are set while processes run

HOUR = 3600.0
DAY = 24 * HOUR
MOST_PRUNES = 1000  # until a Server has seen that its clock was set; each takes two processes' starts
ANSWER_SECONDS = 60.0  # for one answer of an Agent or Server
RECORD = """
import json, sys
from taba import client
client.start("web/1")
tab, type, values = sys.argv[1:]
tab = client.tab(tab, type=type)
for value in json.loads(values):
    tab.record(value)
"""


class ClockCase(SynchronousTestCase):
    """Services, and a wall clock that can be set."""

    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.clock = WallClock()
        self.addCleanup(self.clock.remove)
        self.clock.check()

    def record(self, amount: int) -> None:
        self.record_in("hits", "TotalsCounter", amount)

    def record_in(self, tab: str, type: str, *values: Any, clock: WallClock | None = None) -> None:
        """Have a process record `values`, with the wall clock `clock` where it is given."""
        environ: dict[str, Any] = clock.environ if clock else {}
        done = self.services.run("-c", RECORD, tab, type, json.dumps(values), **environ)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def status_of_agent(self) -> Any:
        with urllib.request.urlopen(f"{self.services.agent_url}/v1/status", timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def total(self) -> Any:
        found = self.services.query.projections(name="hits")
        return found["hits"]["web/1"]["total"] if "hits" in found else 0

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.services.server_url}/readyz", timeout=ANSWER_SECONDS) as answer:
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
        valkey = borrow(self, tcp=True)
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
        self.assertEqual(self.status_of_agent()["dropped_by_reason"], {})

    def test_eight_days_ahead_for_a_while_nothing_is_too_old(self) -> None:
        self.check_waits_while_the_clock_is(8 * 24 * HOUR)

    def test_nor_in_1970(self) -> None:
        self.check_waits_while_the_clock_is(-time.time())


@pytest.mark.takes(seconds=35)
class Forgetting(ClockCase):
    """The clock of a Server and its store is far ahead for a while."""

    def start(self) -> EphemeralValkey:
        valkey = EphemeralValkey(tcp=True, environ=self.clock.environ)
        self.addCleanup(valkey.remove)
        self.services.clocks["server"] = self.clock
        self.services.start_server(store=valkey.url)
        self.services.start_agent()
        return valkey

    def value(self, tab: str) -> Any:
        found = self.services.query.projections(name=tab)
        return found[tab]["web/1"]["value"] if tab in found else None

    def day(self) -> Any:
        found = self.services.query.projections(name="group")
        return found["group"]["web/1"]["1d"]["count"] if "group" in found else 0

    def pass_days(self, valkey: EphemeralValkey, days: int) -> None:
        """Make the store older, until the Server knows."""
        until(lambda: self.services.query.status()["store"]["age"] is not None, "the Server knows how old its store is")
        age, wall, doubts = valkey.call("GET", "taba:{0}:age").decode().split()
        older = int(age) + days * 24 * 60
        valkey.call("SET", "taba:{0}:age", f"{older} {wall} {doubts}")
        until(lambda: self.services.query.status()["store"]["age"] >= older, "the Server knows how old its store is")

    def prune(self) -> str:
        """Run a prune job to its end: what it says."""
        id = self.services.query.start_job("prune")["id"]
        until(lambda: self.services.query.jobs(id)[0]["state"] != "running", "the job has ended")
        [record] = self.services.query.jobs(id)
        self.assertEqual(record["state"], "done", record)
        return str(record["message"])

    def test_forty_days_ahead_nothing_that_lives_is_pruned_and_a_day_is_a_day(self) -> None:
        valkey = self.start()
        self.record_in("fresh", "ExpiryGauge", {"value": "up", "seconds": 10 * DAY})
        self.record_in("group", "CounterGroup", *[1.0] * 10)
        self.record_in("gauge", "Gauge", "kept")
        self.record(1)
        until(lambda: (self.value("fresh"), self.day(), self.value("gauge"), self.total()) == ("up", 10, "kept", 1), "before")
        self.pass_days(valkey, 2)  # so that Handlers are asked about all that was recorded until now
        self.clock.offset = 40 * DAY
        number, said = 1, ""
        while "no Handler was asked" not in said:  # the Server looks at its clock every few seconds
            said = self.prune()
            self.assertIn("0 States deleted, 0 merged", said)
            number += 1
            self.assertLess(number, MOST_PRUNES, "the Server does not see that the clocks do not agree")
            self.record(1)
            self.record_in("group", "CounterGroup", 1.0)
            until(lambda number=number: (self.total(), self.day()) == (number, 9 + number), "what is folded meanwhile")  # type: ignore[misc]
        self.record_in("old", "ExpiryGauge", {"value": "gone", "seconds": 0.001})
        until(lambda: "old" in self.services.query.names(), "what expires at once")
        self.assertEqual((self.value("fresh"), self.value("gauge")), ("up", "kept"))
        self.clock.offset = 0.0
        self.pass_days(valkey, 2)
        until(lambda: "1 State deleted, 0 merged" in self.prune(), "what has expired goes once the clocks agree")
        self.assertNotIn("old", self.services.query.names())
        self.record(1)
        until(lambda: self.total() == number + 1, "after")
        self.assertEqual((self.value("fresh"), self.value("gauge"), self.day()), ("up", "kept", 9 + number))

    def test_a_gauge_from_a_host_that_is_ahead_yields_to_a_newer_right_one(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.clock.offset = 40 * DAY
        for turn in range(2):
            self.record_in("gauge", "Gauge", f"wrong {turn}", clock=self.clock)
            until(lambda turn=turn: self.value("gauge") == f"wrong {turn}", "the wrong one")  # type: ignore[misc]
            self.record_in("gauge", "Gauge", f"right {turn}")
            until(lambda turn=turn: self.value("gauge") == f"right {turn}", "the right one")  # type: ignore[misc]

    def check_counted_once(self, is_folded_before: bool) -> None:
        """200 events, the store's clock is ahead for a second in which the Agent is another, and 100 more."""
        self.services.clocks["server"] = self.clock
        self.services.start_server()
        self.services.start_agent()
        self.record_in("hits", "TotalsCounter", *[1] * 200)
        if is_folded_before:
            until(lambda: self.total() == 200, "before")
        self.services.kill_agent()
        self.clock.offset = 15 * DAY
        self.prune()
        time.sleep(1.0)  # it is off for so long
        self.services.start_agent()
        self.clock.offset = 0.0
        self.record_in("hits", "TotalsCounter", *[1] * 100)
        until(lambda: self.total() == 300, "after")
        self.prune()
        self.services.kill_agent()
        self.services.start_agent()  # which sends again what nobody has told it of
        self.record_in("last", "TotalsCounter", 1)
        until(lambda: "last" in self.services.query.names(), "the last")
        self.assertEqual(self.total(), 300)
        self.assertEqual(self.status_of_agent()["dropped_by_reason"], {})

    def test_the_stores_clock_is_fifteen_days_ahead_for_a_second_and_all_that_was_folded_before_counts_once(self) -> None:
        self.check_counted_once(is_folded_before=True)

    def test_so_does_what_was_under_way(self) -> None:
        self.check_counted_once(is_folded_before=False)


@pytest.mark.takes(seconds=25)
class Posting(ClockCase):
    """Keys of posts to an Agent, under whatever clock."""

    def post(self, value: float, key: str = "one") -> int:
        """The status of the answer."""
        event = {"tab": "hits", "type": "TotalsCounter", "value": value}
        body = json.dumps({"client": "web/1", "events": [event] * 2}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        request = urllib.request.Request(f"{self.services.agent_url}/v1/events", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                self.assertEqual(json.load(answer), {"accepted": 2, "rejected": []})
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 422:
                    self.assertEqual(json.load(error)["error"], "other_request")
                return error.code

    def check_counts_once(self, is_server_there: bool, offset: float) -> None:
        self.services.clocks["agent"] = self.clock
        self.services.start_server()
        self.services.start_agent()
        until(lambda: self.post(1.0, "first") == 200, "the Agent knows the number of buckets")
        until(lambda: self.total() == 2, "before")
        if not is_server_there:
            self.services.kill_server()
        self.assertEqual(self.post(2.0), 200)
        if is_server_there:
            until(lambda: self.total() == 6, "it is folded")
        for _ in range(2):
            self.services.kill_agent()
            self.clock.offset += offset
            self.services.start_agent()
            self.assertEqual((self.post(2.0), self.post(1.0, "first")), (200, 200))
            self.assertEqual((self.post(3.0), self.post(2.0, "first")), (422, 422))
            self.assertEqual(self.status_of_agent()["recorded"], 4)
        if not is_server_there:
            self.services.start_server()
        self.assertEqual(self.post(4.0, "last"), 200)
        until(lambda: self.total() == 14, "after")
        self.assertEqual(self.status_of_agent()["recorded"], 6)

    def test_a_key_that_comes_again_after_the_agents_restart_counts_once_and_another_body_is_refused(self) -> None:
        self.check_counts_once(is_server_there=True, offset=0.0)

    def test_so_with_the_server_away(self) -> None:
        self.check_counts_once(is_server_there=False, offset=0.0)

    def test_so_with_a_clock_that_is_set_ahead_by_days(self) -> None:
        self.check_counts_once(is_server_there=True, offset=8 * DAY)
