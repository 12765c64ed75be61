"""What Tabs mean is said with their events: once a stream, again where it changes, and never lost to a full disk or a kill."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.encoding import encode
from taba.agent.meanings import MAX_MEANINGS_BYTES, MAX_SAID, Meanings, Telling
from taba.batch import Column, Meaning, decode_batch, encode_batch
from taba.bounds import MAX_BATCH_BYTES, KiB
from taba.names import bucket_of
from tests.agent.moments import at
from tests.agent.test_sums import BUCKETS, World

from ..pieces import pack
from .producers import Producer


class Told(World):
    """Its outbox, read for what is said."""

    def said(self) -> list[Meaning]:
        return [meaning for batch in self.batches() for meaning in batch.meanings]

    def make(
        self, tab: str, unit: str = "", description: str = "", producer: Producer | None = None, type: str = "CounterGroup"
    ) -> Producer:
        if producer is None:
            producer = Producer("sums", "web/1", 65_536, self.shm)
            self.producers.append(producer)
        producer.record(producer.tab(tab, unit=unit, description=description), 1.0)
        return producer


class Sayings(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = Told()
        self.addCleanup(self.world.close)

    def test_it_travels_with_the_first_events_and_no_more_in_this_stream(self) -> None:
        world = self.world
        producer = world.make("a", "s", "how long")
        world.make("b", producer=producer)
        world.tick()
        self.assertEqual(world.said(), [Meaning("a", "s", "how long")])
        (batch,) = [batch for batch in world.batches() if batch.meanings]
        self.assertEqual(batch.bucket, bucket_of("a", BUCKETS))
        world.make("a", producer=producer)
        world.make("a", "s", "how long")  # of another process, which says the same
        world.tick()
        self.assertEqual(world.said(), [Meaning("a", "s", "how long")])

    def test_a_process_that_says_otherwise_is_heard(self) -> None:
        world = self.world
        for unit, description in (("s", "old"), ("s", "new"), ("s", "old")):
            world.make("a", unit, description)
            world.tick()
        self.assertEqual([meaning.description for meaning in world.said()], ["old", "new", "old"])

    def test_a_new_stream_says_it_again_with_the_next_events(self) -> None:
        world = self.world
        producer = world.make("a", "s")
        world.tick()
        world.keeper.begin_stream(at(world.now))
        world.make("b", producer=producer)
        world.tick()
        self.assertEqual(len(world.said()), 1)
        world.make("a", producer=producer)
        world.tick()
        self.assertEqual(world.said(), [Meaning("a", "s", "")] * 2)

    def test_another_store_is_told_all_again(self) -> None:
        world = self.world
        producer = world.make("a", "s")
        world.tick()
        world.pump.meanings.forget()
        world.make("a", producer=producer)
        world.tick()
        self.assertEqual(world.said(), [Meaning("a", "s", "")] * 2)

    def test_a_kill_at_any_step_loses_nothing_that_was_said(self) -> None:
        for steps in count():
            world = Told()
            self.addCleanup(world.close)
            world.make("a", "s")
            world.steps = steps
            world.tick()
            world.tick()
            self.assertIn(Meaning("a", "s", ""), world.said(), steps)
            if not world.kills:
                break
        self.assertGreaterEqual(steps, 3)

    def test_a_tab_that_heals_is_told_of_too(self) -> None:
        world = self.world
        producer = Producer("sums", "web/1", 65_536, world.shm)
        world.producers.append(producer)
        producer.record(producer.tab("up", "UpDown", has_cell=True, unit="1", description="there now"), 1.0)
        world.tick()
        self.assertEqual(world.said(), [Meaning("up", "1", "there now")])


class Bounds(SynchronousTestCase):
    def test_what_is_too_much_for_one_drain_goes_with_the_next(self) -> None:
        world = Told()
        self.addCleanup(world.close)
        tabs = [tab for number in range(2000) if bucket_of(tab := f"tab{number}", BUCKETS) == 1][:100]
        producer = Producer("sums", "web/1", 1 << 20, world.shm)
        world.producers.append(producer)
        rounds = 0
        while {meaning.tab for meaning in world.said()} != set(tabs):
            for tab in tabs:
                world.make(tab, description="ü" * 400, producer=producer)
            world.tick()
            rounds += 1
        sizes = [sum(len(meaning.description.encode()) for meaning in batch.meanings) for batch in world.batches()]
        self.assertLessEqual(max(sizes), MAX_MEANINGS_BYTES)
        self.assertEqual(rounds, 3)  # of 80 KB in lots of 32 KiB
        self.assertEqual(len(world.said()), 100)

    def test_of_more_tabs_than_are_known_to_be_said_some_are_said_again(self) -> None:
        ring: object = SimpleNamespace(names=SimpleNamespace(untold={}), directory=[])
        meanings = Meanings()
        meanings.begin(b"s", [])
        tellings = [Telling(ring, number, 0, Meaning(f"t{number}", "s", "")) for number in range(MAX_SAID + 1)]  # type: ignore[arg-type]
        meanings.published(tellings[:MAX_SAID])
        self.assertEqual(meanings.pending([tellings[0]]), ({}, [tellings[0]]))
        meanings.published(tellings[MAX_SAID:])
        self.assertEqual(meanings.pending([tellings[0]]), ({0: [tellings[0].meaning]}, [tellings[0]]))
        self.assertEqual(meanings.pending([tellings[MAX_SAID]])[0], {})

    def test_they_go_into_the_last_batch_of_their_bucket_or_where_that_is_full_into_one_of_their_own(self) -> None:
        told = [Meaning("a", "s", "x" * 400)] * 60
        for values in range(58_000, 62_000, 100):
            columns = [Column("web/1", "a", "Buffer", bytes(8 * values), bytes(8 * values))]
            batches = encode(pack({1: columns}), b"s" * 16, {}, at(1.5), meanings={1: told})
            decoded = [decode_batch(bytes(batch.content)) for batch in batches]
            self.assertLessEqual(max(len(batch.content) for batch in batches), MAX_BATCH_BYTES)
            self.assertEqual([len(batch.meanings) for batch in decoded], [0] * (len(decoded) - 1) + [60])
            self.assertEqual([batch.number for batch in decoded], list(range(1, len(decoded) + 1)))
            self.assertEqual(sum(batch.events for batch in batches), values)
        (small,) = encode(pack({1: [Column("c", "a", "Buffer", bytes(8), bytes(8))]}), b"s" * 16, {}, at(1.5), 64 * KiB, meanings={1: told})
        self.assertEqual(small.content, encode_batch(b"s" * 16, 1, 1, [Column("c", "a", "Buffer", bytes(8), bytes(8))], told))
