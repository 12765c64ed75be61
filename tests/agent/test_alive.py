"""Who lives is said of every ring's client: again and again while it lives, once when it is dead, and never counted."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent.alive import (
    ALIVE,
    DEAD,
    HOLDS_SECONDS,
    MAX_PROBLEM,
    MAX_PROBLEMS,
    REFRESH_SECONDS,
    REPEAT_SECONDS,
    Alive,
    sender_of,
)
from taba.agent.books import Books
from taba.agent.pump import RingPump
from taba.agent.spool import ROW_BYTES
from taba.batch import Column, decode_batch
from taba.names import (
    ALIVE_TAB,
    ALIVE_TYPE,
    OWN_TABS,
    PROBLEMS_TAB,
    PROBLEMS_TYPE,
    PROCESS_TAB,
    PROCESS_TYPE,
    STARTS_TAB,
    STARTS_TYPE,
    bucket_of,
    check_client,
)

from .moments import at
from .producers import Producer
from .test_sums import AGENT, BUCKETS, World
from .world import World as Keeping

NOON = 1_800_000_000.0
AGENT_CLIENT = "host:taba-agent/a"
TYPES = {ALIVE_TAB: ALIVE_TYPE, PROCESS_TAB: PROCESS_TYPE, STARTS_TAB: STARTS_TYPE, PROBLEMS_TAB: PROBLEMS_TYPE}


class Living(World):
    problems: Sequence[str] = ()
    step = 0.0  # of the host's clock

    def born(self) -> None:
        super().born()
        self.alive = Alive(self.pump, lambda: NOON + self.now + self.step, AGENT_CLIENT, lambda: self.problems)

    def process(self, client: str = "web/1", age: float = 0.0) -> Producer:
        producer = Producer(AGENT, client, 65_536, self.shm)
        os.pwrite(producer.fd, struct.pack("<d", NOON + self.now + self.step - age), layouts.CREATED_OFFSET)
        producer.record(producer.tab("other"), 1.0)
        self.producers.append(producer)
        return producer

    def tick(self, seconds: float = 1.0) -> None:
        super().tick(seconds)
        self.alive.tick(self.now, at(self.now))

    def again(self) -> None:
        """The Agent is killed, and another one begins."""
        for ring in list(self.pump.rings.open.values()):
            ring.close()
        self.register.close()
        self.spool.close()
        self.born()

    def said(self, tab: str = ALIVE_TAB) -> list[tuple[str, Any]]:
        """(client, value) of all that was said of one Tab."""
        found = []
        for batch in self.batches():
            for column in batch.columns:
                if column.tab == tab:  # type: ignore[union-attr]
                    assert column.type == TYPES[tab] and column.weight == 0, column  # type: ignore[union-attr]
                    found += [(column.client, value) for value in column.values]  # type: ignore[union-attr]
        return found


class Sayings(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = Living()
        self.addCleanup(self.world.close)

    def said(self) -> list[tuple[str, Any]]:
        """What was said since the last look; all that was sent is applied then."""
        found = self.world.said()
        fresh, self._seen = found[getattr(self, "_seen", 0) :], len(found)
        for lane in self.world.keeper.lanes.values():
            lane.pending.clear()
        return fresh

    def test_while_all_is_as_it_was_nothing_is_looked_at_until_it_is_said_anew(self) -> None:
        looked: list[float] = []
        alive, look = self.world.alive, self.world.alive._look
        alive._look = lambda *given: looked.append(self.world.now) or look(*given)  # type: ignore[method-assign, func-returns-value]
        first = self.world.process()
        self.world.tick()
        self.assertEqual(len(looked), 1)
        for _ in range(3):
            self.world.tick()
        self.assertEqual(len(looked), 1)
        self.world.process("web/2")
        self.world.tick()
        self.assertEqual(len(looked), 2)
        self.world.step = 0.5  # of the host's clock
        self.world.tick()
        self.world.tick()
        self.assertEqual(len(looked), 3)
        self.world.die(first)
        self.world.tick()
        self.assertEqual(len(looked), 4)
        self.said()
        for _ in range(int(REFRESH_SECONDS) + 1):
            self.world.tick()
        self.assertGreater(len(looked), 4)

    def test_it_is_said_at_once_and_anew_before_it_runs_out(self) -> None:
        self.world.process()
        times = []
        for _ in range(int(4 * HOLDS_SECONDS)):
            self.world.tick()
            times += [self.world.now] * len(self.said())
        self.assertEqual(times[0], 1.0)
        self.assertEqual({after - before for before, after in pairwise(times)}, {REFRESH_SECONDS})
        self.assertLess(REFRESH_SECONDS * 2, HOLDS_SECONDS)

    def test_a_death_is_said_once_within_two_looks_and_a_return_at_once(self) -> None:
        world = self.world
        process = world.process()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])
        world.die(process)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", DEAD)])
        for _ in range(40):
            world.tick()
        self.assertEqual(self.said(), [])
        world.process()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])

    def test_a_client_of_several_processes_lives_until_the_last_is_dead(self) -> None:
        world = self.world
        first, second = world.process(), world.process()
        world.tick()
        world.die(first)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])
        world.die(second)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", DEAD)])

    def test_who_died_while_no_agent_was_there_is_said_to_be_dead(self) -> None:
        world = self.world
        process, other = world.process(), world.process("web/2")
        world.tick()
        self.said()
        world.die(process)
        world.again()
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/2", ALIVE), ("web/1", DEAD)])
        self.assertIn(other, world.producers)

    def test_a_ring_that_is_given_up_says_nothing_of_its_process(self) -> None:
        world = self.world
        world.process()
        world.tick()
        (ring,) = world.pump.rings.open.values()
        self.said()
        world.pump._isolate(ring, "a test")
        for _ in range(40):
            world.tick()
        self.assertEqual(self.said(), [])

    def test_while_nothing_is_applied_one_batch_of_it_waits_and_deaths_are_said(self) -> None:
        world = self.world
        process = world.process()
        world.process("web/2")
        for _ in range(100):
            world.tick()
        self.assertEqual(world.said(), [("web/1", ALIVE), ("web/2", ALIVE)])
        world.die(process)
        for _ in range(100):
            world.tick()
        self.assertEqual(world.said()[2:], [("web/1", DEAD)])
        self.said()
        world.tick()
        self.assertEqual(self.said(), [("web/2", ALIVE)])

    def test_it_is_in_no_count(self) -> None:
        world = self.world
        process = world.process()
        world.tick()
        world.die(process)
        world.tick()
        world.tick()
        self.assertEqual(len(world.said()), 2)
        self.assertEqual((world.keeper.books.recorded, dict(world.keeper.books.dropped)), (1, {}))
        stored = [stored for group in world.keeper.outbox.groups() for stored in group.batches]
        self.assertEqual(sum(one.events for one in stored), 1)
        for one in stored:
            batch = decode_batch(world.keeper.outbox.read(one.position, one.length))
            own = {column.tab for column in batch.columns} & set(OWN_TABS)  # type: ignore[union-attr]
            if own:
                self.assertEqual(({batch.bucket}, one.events), ({bucket_of(tab, BUCKETS) for tab in own}, 0))


class Facts(SynchronousTestCase):
    """What is said of processes beside that they live, and of the Agent."""

    def setUp(self) -> None:
        self.world = Living()
        self.addCleanup(self.world.close)

    def said(self, tab: str) -> list[tuple[str, Any]]:
        """What is said of a Tab after all that was said before is applied."""
        for lane in self.world.keeper.lanes.values():
            lane.pending.clear()
        return self.world.said(tab)

    def facts(self) -> dict[str, Any]:
        """By Client what was said last of its processes."""
        return dict(self.said(PROCESS_TAB))

    def run_for(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.world.tick()
            for lane in self.world.keeper.lanes.values():
                lane.pending.clear()

    def test_a_process_is_as_old_as_its_ring_and_then_by_the_agents_own_clock(self) -> None:
        world = self.world
        world.process(age=500.0)
        world.tick()
        first = self.facts()["web/1"]
        self.assertEqual((first["processes"], first["dropped"]), (1, 0))
        self.assertLessEqual(abs(NOON + world.now - first["since"] - 501.0), 1.0)  # of the second until it was seen
        said = len(self.said(PROCESS_TAB))
        self.run_for(60)
        self.assertEqual(len(self.said(PROCESS_TAB)), said)  # nothing has changed
        world.step = -3600.0
        world.tick()
        self.assertLessEqual(abs(NOON + world.now + world.step - self.facts()["web/1"]["since"] - 562.0), 2.0)

    def test_a_ring_of_the_future_is_new(self) -> None:
        world = self.world
        world.process(age=-1e6)
        world.tick()
        self.assertEqual(self.facts()["web/1"]["since"], NOON + world.now)

    def test_of_several_processes_the_oldest_tells_the_age_and_of_none_the_death(self) -> None:
        world = self.world
        old, young = world.process(age=100.0), world.process(age=10.0)
        world.tick()
        found = self.facts()["web/1"]
        self.assertEqual(found["processes"], 2)
        world.die(old)
        world.tick()
        world.tick()
        self.assertEqual(self.facts()["web/1"]["processes"], 1)
        self.assertLessEqual(abs(self.facts()["web/1"]["since"] - found["since"] - 90.0), 1.0)
        world.die(young)
        world.tick()
        world.tick()
        self.assertEqual(self.facts()["web/1"]["processes"], 0)
        self.assertLessEqual(abs(self.facts()["web/1"]["since"] - (NOON + world.now)), 2.0)

    def test_each_process_is_a_start_of_its_own_however_often_it_is_said_and_however_short_it_lived(self) -> None:
        world = self.world
        world.process()
        world.tick()
        world.die(world.process())  # found dead at the first look
        world.tick()
        world.tick()
        world.again()
        world.tick()
        starts = self.said(STARTS_TAB)
        self.assertEqual((len(set(starts)), {client for client, _ in starts}), (2, {"web/1"}))
        said = len(starts)
        self.run_for(REPEAT_SECONDS - 1)
        self.assertEqual(len(self.said(STARTS_TAB)), said)
        self.run_for(2 * REFRESH_SECONDS)  # what was said may have been lost
        self.assertEqual((len(self.said(STARTS_TAB)), len(set(self.said(STARTS_TAB)))), (said + 1, 2))

    def test_what_was_dropped_is_said_while_a_process_lives_and_after(self) -> None:
        world = self.world
        process = world.process()
        world.tick()
        world.pump.drops.count("web/1", {"spool_full": 3})
        self.run_for(2 * REFRESH_SECONDS)
        self.assertEqual(self.facts()["web/1"]["dropped"], 3)
        world.die(process)
        self.run_for(3)
        world.pump.drops.count("web/1", {"ring_full": 4})
        self.run_for(2 * REFRESH_SECONDS)
        self.assertEqual((self.facts()["web/1"]["dropped"], self.facts()["web/1"]["processes"]), (7, 0))

    def test_those_who_are_gone_cost_a_look_only_where_drops_are_looked_at(self) -> None:
        world = self.world
        lives = [world.process(f"job/{number}") for number in range(20)]
        self.run_for(REFRESH_SECONDS)
        for process in lives:
            world.die(process)
        self.run_for(3)
        self.assertEqual({found["processes"] for found in self.facts().values()}, {0})
        asked: list[str] = []

        def counted(_: Any, client: str) -> int:
            asked.append(client)
            return 1 if client == "job/7" else 0

        self.patch(RingPump, "dropped_by", counted)
        wall = NOON + world.now
        self.assertEqual((world.alive._facts_now({}, (), world.now, wall, False), asked), ({}, []))
        said = len(self.said(PROCESS_TAB))
        self.run_for(2 * REFRESH_SECONDS)
        self.assertEqual((set(asked), len(self.said(PROCESS_TAB)) - said), ({f"job/{number}" for number in range(20)}, 1))
        self.assertEqual(self.facts()["job/7"]["dropped"], 1)

    def test_an_agents_problems_are_said_while_there_are_any_and_then_that_there_are_none(self) -> None:
        world = self.world
        world.process()
        world.tick()
        self.assertEqual(self.said(PROBLEMS_TAB), [])
        world.problems = ["a" * (MAX_PROBLEM + 1)] + ["b"] * MAX_PROBLEMS
        self.run_for(3 * REFRESH_SECONDS)
        cut = ["a" * MAX_PROBLEM] + ["b"] * (MAX_PROBLEMS - 1)
        found = self.said(PROBLEMS_TAB)
        self.assertEqual(found, [(AGENT_CLIENT, {"value": cut, "seconds": HOLDS_SECONDS})] * 3)
        world.problems = []
        self.run_for(3 * REFRESH_SECONDS)
        self.assertEqual([value["value"] for _, value in self.said(PROBLEMS_TAB)[3:]], [[]])

    def test_a_problem_that_names_what_is_no_text_is_told_and_harms_nothing(self) -> None:
        for name in (os.fsdecode(b"/var/sp\xfcl"), "\ud800", "\udcff" * MAX_PROBLEM):
            world = self.world
            world.problems = [f"the spool {name} is full"]
            world.process()
            self.run_for(2 * REFRESH_SECONDS)
            told = self.said(PROBLEMS_TAB)[-1][1]["value"]
            self.assertEqual(told, [world.problems[0].encode(errors="backslashreplace").decode()[:MAX_PROBLEM]])

    def test_while_nothing_is_applied_one_batch_of_an_agents_problems_waits(self) -> None:
        self.world.problems = ["no Server answers"]
        self.world.process()
        for _ in range(int(5 * REFRESH_SECONDS)):
            self.world.tick()
        self.assertEqual(len(self.world.said(PROBLEMS_TAB)), 1)

    def test_an_agents_client_id_is_one_whatever_its_host_is_called(self) -> None:
        for host in ("web-1", "taba.example.org", "_dmz", "büro 7", "x" * 255, ""):
            self.assertEqual(check_client(sender_of(host, "default")), sender_of(host, "default"))


class Backlog(SynchronousTestCase):
    """What waits in the spool says nothing of who lives now, and does not keep it from being said."""

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = Keeping(directory)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        self.alive = Alive(world.pump, lambda: NOON + world.now, AGENT_CLIENT, list)
        self.tick(events=40)

    def tick(self, seconds: float = 2.0, events: int = 0, sends: bool = False) -> None:
        world = self.world
        for _ in range(int(seconds / 2)):  # a tick of the world's is two
            world.record(events)
            world.tick()
            self.alive.tick(world.now, at(world.now))
            if sends:
                world.send()

    def said(self) -> int:
        """How often it was said that web/0 lives, as far as Servers know."""
        return self.world.store.lives.count(("web/0", ALIVE))

    def waiting(self) -> int:
        """Batches that say who lives, of those that wait."""
        bucket, keeper = self.world.pump.bucket_of(ALIVE_TAB), self.world.keeper
        rows = [row.id for key in self.lanes() for row in keeper.spool.rows(*key, 0, 10_000)]
        contents = [keeper.spool.read(id) for id in rows]
        contents += [keeper.outbox.read(one.position, one.length) for group in keeper.outbox.groups() for one in group.batches]
        return sum(
            isinstance(column, Column) and column.tab == ALIVE_TAB
            for content in contents
            if content is not None and decode_batch(content).bucket == bucket
            for column in decode_batch(content).columns[:1]
        )

    def lanes(self) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        while (key := self.world.spool.next_lane(found[-1] if found else None)) is not None:
            found.append(key)
        return found

    def test_while_it_drains_those_who_live_are_said_to_live_again_and_again(self) -> None:
        world = self.world
        self.assertEqual((self.said(), self.waiting()), (0, 1))
        world.move()
        self.patch(Books, "holds_backlog", True)  # however long it takes
        self.tick(2 * HOLDS_SECONDS, events=10, sends=True)
        self.assertGreater(world.spool.batches, 0)
        self.assertGreaterEqual(self.said(), 2 * HOLDS_SECONDS / REFRESH_SECONDS - 1)
        world.move()  # what was said last may be among what moves next
        before = self.said()
        self.tick(2 * HOLDS_SECONDS, events=10, sends=True)
        self.assertGreaterEqual(self.said() - before, 2 * HOLDS_SECONDS / REFRESH_SECONDS - 1)

    def test_without_a_server_a_move_to_the_spool_leaves_one_of_it_and_no_more(self) -> None:
        self.world.move()
        self.tick(4 * HOLDS_SECONDS)
        self.assertEqual(self.waiting(), 1)

    def test_where_all_goes_into_the_spool_it_is_waited_for_there(self) -> None:
        world = self.world
        world.keeper.is_homeless = True
        self.tick(2.0, events=10)
        self.alive._told.clear()
        self.tick(4 * HOLDS_SECONDS)
        self.assertLessEqual(self.waiting(), 3)
        before = self.said()
        self.tick(4 * HOLDS_SECONDS, sends=True)  # it comes in its turn, and is said anew then
        self.assertGreater(self.said() - before, HOLDS_SECONDS / REFRESH_SECONDS)
        self.assertLess(world.spool.used, 100 * ROW_BYTES)
