"""The store's age and the time of folds: no clock that is set makes either run."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.server import keys
from taba.server.aging import (
    AGREE_SECONDS,
    DOUBT_MINUTES,
    LOOK_SECONDS,
    MINUTE_SECONDS,
    Record,
    StoreAge,
    disagreement,
    passed,
    raised,
    read_record,
)
from taba.server.steady import DOUBT_SECONDS, HEARD_SECONDS, MAX_SENDERS, SLIGHT_SECONDS, SteadyClock
from taba.shard import Writes
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer

NOON = 1_800_000_000.0
DAY = 86_400.0


class Ages(SynchronousTestCase):
    """Servers on one store, each with a wall clock of its own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.walls = [NOON, NOON, NOON]
        self.store_time: float | None = None
        self.servers = [MemoryServer(self.clock)]
        self.ages = [self.one(place) for place in range(3)]

    def one(self, place: int) -> StoreAge:
        router: Any = MemoryRouter(self.servers, 4, self.clock)
        self.successResultOf(ensureDeferred(router.connect()))
        router.time = lambda bucket: succeed(self.walls[0] if self.store_time is None else self.store_time)
        return StoreAge(router, self.clock.seconds, lambda: self.walls[place])

    def look(self, *places: int) -> None:
        for place in places:
            self.successResultOf(ensureDeferred(self.ages[place].look()))

    def pass_time(self, seconds: float, *places: int) -> None:
        for _ in range(int(seconds / LOOK_SECONDS)):
            self.clock.advance(LOOK_SECONDS)
            self.walls = [wall + LOOK_SECONDS for wall in self.walls]
            self.look(*places)

    def test_it_is_not_known_before_it_was_read_and_begins_at_nothing(self) -> None:
        self.assertIsNone(self.ages[0]())
        self.look(0)
        self.assertEqual(self.ages[0](), 0)

    def test_one_server_and_many_raise_it_by_one_a_minute(self) -> None:
        for places in ((0,), (0, 1, 2)):
            self.look(*places)
            before = self.ages[0]() or 0
            self.pass_time(10 * MINUTE_SECONDS, *places)
            self.assertIn((self.ages[0]() or 0) - before, (9, 10))

    def test_it_never_runs_faster_than_time_whatever_the_clocks_say(self) -> None:
        self.look(0, 1, 2)
        for step in (40 * DAY, -80 * DAY, 3600.0):
            self.walls[1] += step
            self.store_time = NOON - step
            self.pass_time(10 * MINUTE_SECONDS, 0, 1, 2)
        self.assertLessEqual(self.ages[0]() or 0, 30)
        self.assertGreaterEqual(self.ages[0]() or 0, 27)

    def test_clocks_that_do_not_agree_are_a_problem_and_a_long_pause_of_all_servers_is_none(self) -> None:
        self.look(0)
        self.pass_time(10 * MINUTE_SECONDS)  # nobody looks
        self.look(0)
        self.assertEqual(self.ages[0].problems, [])
        self.assertIsNotNone(self.ages[0].disagreement)
        self.store_time = self.walls[0] + AGREE_SECONDS
        self.look(0)
        self.assertEqual(self.ages[0].problems, [])
        self.store_time += 1.0
        self.look(0)
        [problem] = self.ages[0].problems
        self.assertIn("this host's clock and the store's differ by 301 s", problem)
        self.assertIn("NTP", problem)

    def test_what_is_no_age_is_a_problem_that_names_its_key_and_not_a_failure_every_few_seconds(self) -> None:
        self.look(0)
        for bad in (b"x", b"", b"1 2", b"99999999999 1.0 0"):
            self.put(bad)
            self.look(0)
            self.assertIsNone(self.ages[0]())
            self.assertIn("delete taba:{0}:age", self.ages[0].problems[0])
        self.put(b"7 %d 0" % NOON)
        self.look(0)
        self.assertEqual((self.ages[0](), self.ages[0].problems), (7, []))

    def put(self, content: bytes) -> None:
        write = Writes([(b"SET", keys.age(0), content)])
        self.successResultOf(ensureDeferred(self.ages[0]._router.transact(0, [], lambda _: write)))  # type: ignore[arg-type]

    def test_a_server_that_was_stopped_raises_it_by_one_at_the_most(self) -> None:
        self.look(0)
        self.pass_time(MINUTE_SECONDS - LOOK_SECONDS, 0)
        self.clock.advance(DAY)
        self.look(0)
        self.assertEqual(self.ages[0](), 1)

    def test_a_store_that_went_back_in_time_counts_on_from_there(self) -> None:
        self.look(0)
        self.pass_time(5 * MINUTE_SECONDS, 0)
        self.servers[0].run((b"SET", keys.age(0), b"1 %.3f 0" % NOON))
        self.look(0)
        self.assertEqual(self.ages[0](), 1)
        self.assertEqual((passed(4, 1), passed(1, 4), passed(1, None)), (0, 3, 0))

    def test_clocks_that_do_not_agree_are_named_until_they_do(self) -> None:
        self.look(0)
        self.assertIsNone(self.ages[0].disagreement)
        self.walls[0] += 40 * DAY
        self.store_time = NOON
        self.look(0)
        self.assertIn("this host's clock and the store's differ by 3456000 s", str(self.ages[0].disagreement))
        self.store_time = None  # on the same host
        self.look(0)
        self.assertIn("3456000 s off from what Servers of this store went by", str(self.ages[0].disagreement))
        self.walls[0] -= 40 * DAY
        self.look(0)
        self.assertIsNone(self.ages[0].disagreement)

    def test_what_is_no_record_is_refused(self) -> None:
        self.assertIsNone(read_record(None))
        self.assertEqual(read_record(b"7 1.5 3"), Record(7, 1.5, 3))
        for bad in (b"", b"7", b"-1 1.5 0", b"x 1.5 0", b"7 1.5 x", b"7 x 0", b"99999999999 1.5 0"):
            self.assertRaises(ValueError, read_record, bad)


class Recorded(SynchronousTestCase):
    def test_the_recorded_time_follows_clocks_that_agree_and_a_far_one_after_an_hour(self) -> None:
        near = NOON + MINUTE_SECONDS + AGREE_SECONDS
        self.assertEqual(raised(Record(1, NOON, 5), near, near), Record(2, near, 0))
        far = near + 1
        record = Record(1, NOON, 0)
        for number in range(1, DOUBT_MINUTES):
            record = raised(record, far + number * 60, far + number * 60)
            self.assertEqual(record, Record(1 + number, NOON + 60 * number, number))
        self.assertEqual(raised(record, far, far), Record(1 + DOUBT_MINUTES, far, 0))

    def test_a_clock_that_the_stores_does_not_confirm_is_never_taken(self) -> None:
        record = Record(1, NOON, 0)
        for number in range(1, 3 * DOUBT_MINUTES):
            record = raised(record, NOON + 40 * DAY, None if number % 2 else NOON)
            self.assertEqual(record, Record(1 + number, NOON + 60 * number, 0))

    @given(st.floats(0, 2e9), st.floats(0, 2e9), st.floats(0, 2e9))
    def test_clocks_agree_or_the_two_that_do_not_are_named(self, wall: float, store: float, recorded: float) -> None:
        says = disagreement(wall, store, Record(0, recorded, 0))
        if says is None:
            self.assertLessEqual(abs(wall - store), AGREE_SECONDS)
            self.assertLessEqual(abs(wall - recorded), AGREE_SECONDS + MINUTE_SECONDS)


class Steady(SynchronousTestCase):
    def setUp(self) -> None:
        self.seconds, self.wall = 0.0, NOON
        self.clock = SteadyClock(lambda: self.wall, lambda: self.seconds)

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += seconds

    def test_a_clock_that_is_set_changes_nothing_while_others_do_not_agree(self) -> None:
        for step in (40 * DAY, -80 * DAY, 3600.0):
            self.wall += step
            self.pass_time(25.0)
            before = self.clock()
            self.clock.look(NOON, NOON)
            self.clock.heard("agent", NOON)
            self.clock.look(NOON, NOON)
            self.assertEqual(self.clock(), before)
            self.assertIn("s off from what this Server goes by", str(self.clock.problem))
        self.wall = NOON + self.seconds
        self.clock.look(NOON, NOON)
        self.assertIsNone(self.clock.problem)

    def test_a_step_that_store_and_senders_confirm_is_followed_at_once_and_one_that_only_one_confirms_is_not(self) -> None:
        self.wall += DAY
        self.clock.look(self.wall, NOON)
        self.assertEqual(self.clock(), NOON)
        self.clock.heard("a", self.wall)
        self.clock.look(NOON, NOON)
        self.assertEqual(self.clock(), NOON)
        self.clock.heard("b", 0.0)
        self.clock.heard("c", self.wall + 5)
        self.clock.look(self.wall, NOON)
        self.assertEqual((self.clock(), self.clock.problem), (self.wall, None))

    def test_a_step_that_stands_for_an_hour_is_followed_and_never_to_before_what_was_recorded(self) -> None:
        for step, then in ((DAY, lambda: self.wall), (-30 * DAY, lambda: NOON)):
            self.wall += step
            self.clock.look(None, NOON)
            self.pass_time(DOUBT_SECONDS - 1)
            self.clock.look(None, NOON)
            self.assertNotEqual(self.clock(), then())
            self.pass_time(1.0)
            self.clock.look(None, NOON)
            self.assertEqual(self.clock(), then())
            self.assertIsNotNone(self.clock.problem)

    def test_a_little_is_followed_at_once_and_a_little_more_is_not(self) -> None:
        self.wall += SLIGHT_SECONDS
        self.clock.look(None, None)
        self.assertEqual(self.clock(), self.wall)
        self.wall += SLIGHT_SECONDS + 0.1
        self.clock.look(None, None)
        self.assertNotEqual(self.clock(), self.wall)

    def test_a_host_that_booted_in_1970_begins_with_what_was_recorded(self) -> None:
        self.wall = 100.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.seconds)
        self.clock.look(NOON, NOON - 60)
        self.assertEqual(self.clock(), NOON - 60)

    def test_senders_are_bounded_and_what_they_said_long_ago_counts_no_more(self) -> None:
        for number in range(MAX_SENDERS + 1):
            self.clock.heard(f"agent-{number}", self.wall + DAY)
        self.assertEqual(len(self.clock._senders), MAX_SENDERS)
        self.pass_time(HEARD_SECONDS + 1)
        self.wall += DAY
        self.clock.look(self.wall, None)
        self.assertEqual(self.clock(), NOON + HEARD_SECONDS + 1)
