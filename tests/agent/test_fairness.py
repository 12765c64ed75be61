"""Who has how much of what there is little of: the last part of the spool, and batches in memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.agent import books
from taba.agent import keeper as keeping
from taba.agent.fairness import MAX_DROPPERS, OTHERS, Drops, Reserve, Rest
from taba.agent.fairness import MAX_SHOWN as MAX_DROPPERS_SHOWN

from .hosted import Hosted
from .producers import Producer


class Full(Hosted):
    """No Server takes anything, and the spool nears its bound."""

    spool_bytes = 400_000
    outbox_bytes = 512 * 1024

    def record(self, producer: Producer, events: int) -> int:
        for _ in range(events):
            producer.record(producer.tab("flood"), 1.0)
        return events

    def test_who_floods_is_dropped_in_the_last_part_and_the_others_lose_nothing(self) -> None:
        world = self.world
        flood, recorded = self.client(65_536), 0
        for _ in range(60):
            recorded += self.record(flood, 1500)
            world.record(4)  # of web/0 and web/1
            world.tick()
        dropped = world.keeper.books.totals()
        self.assertEqual((set(dropped), world.keeper.books.recorded), ({"spool_full"}, recorded + world.recorded))
        self.assertTrue(any("dropped as spool_full by Client web/flood: " in sentence for sentence in self.problems()))
        by_client = world.pump.drops_by_client()
        self.assertEqual(by_client, {"web/flood": {"spool_full": dropped["spool_full"]}})
        self.assertGreater(world.spool.free, 0)
        late = flood.tab("late", unit="s")
        flood.record(late, 1.0)
        recorded += 1
        world.tick()
        self.assertNotIn("late", world.pump.meanings._said)  # its events were left out: nobody would hear of it
        for _ in range(40):  # and when Servers take it again all is as before
            world.tick()
            world.send()
        before = world.keeper.books.totals()
        flood.record(late, 1.0)
        recorded += 1
        world.tick()
        self.assertIn("late", world.pump.meanings._said)
        for _ in range(5):
            recorded += self.record(flood, 1500)
            world.tick()
            world.send()
        self.assertEqual(world.keeper.books.totals(), before)
        self.assertEqual(world.store.folded + before["spool_full"], recorded + world.recorded)
        events = sum(len(found) for (client, _), found in world.store.events.items() if client != "web/flood")
        self.assertEqual(events, world.recorded)

    def test_who_floods_gets_no_new_share_with_each_part_that_moves_to_the_spool(self) -> None:
        self.patch(keeping, "MOVE_BYTES", 16 * 1024)  # of an outbox that is far larger than the last part
        world = self.world
        flood, recorded, clears, is_short = self.client(65_536), 0, 0, False
        for _ in range(60):
            recorded += self.record(flood, 1500)
            world.record(4)
            world.tick()
            was, is_short = is_short, world.pump._reserve._is_short
            clears += was and not is_short
        self.assertEqual((is_short, clears), (True, 0))
        dropped = world.keeper.books.totals()
        self.assertEqual((set(dropped), world.keeper.books.recorded), ({"spool_full"}, recorded + world.recorded))
        self.assertEqual(world.pump.drops_by_client(), {"web/flood": {"spool_full": dropped["spool_full"]}})
        for _ in range(60):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped["spool_full"], recorded + world.recorded)

    def test_what_goes_up_and_down_stays_right_though_its_client_has_spent_its_share(self) -> None:
        world = self.world
        flood = self.client(65_536)
        busy = flood.tab("busy", "UpDown", has_cell=True)
        total = 0.0
        for number in range(60):
            self.record(flood, 1500)
            flood.record(busy, float(number))
            total += number
            world.tick()
        self.assertGreater(world.keeper.books.totals()["spool_full"], 0)
        for _ in range(40):
            world.tick()
            world.send()
        rows = world.store.events["web/flood", "busy"]
        self.assertEqual((max(rows, key=lambda row: row[1])[2], len(rows)), (total, 60))  # each once, whatever was dropped beside it
        folded = sum(len(found) for (_, tab), found in world.store.events.items() if tab != "busy")
        self.assertEqual(folded + 60 + world.keeper.books.totals()["spool_full"], world.keeper.books.recorded)


class Known(SynchronousTestCase):
    def test_shares_are_of_those_who_are_there_and_begin_anew_once_there_is_room(self) -> None:
        reserve = Reserve()
        short = Rest(True, 99, 1000, 100, 0)
        for spent, used in ((frozenset[str](), 49), (frozenset[str](), 1), (frozenset({"a"}), 0)):
            self.assertEqual(reserve.spent(short, ["a", "b", "b"]), spent)
            reserve.use("a", used)
        self.assertEqual(reserve.spent(short, ["a"]), frozenset())  # alone it has all
        reserve.use("a", 50)
        self.assertEqual(reserve.spent(short, ["a"]), {"a"})
        self.assertEqual(reserve.spent(short._replace(is_spooling=False), ["a"]), {"a"})  # all of it moved to the spool just now
        self.assertEqual(reserve.spent(short._replace(left=100), ["a"]), frozenset())
        self.assertEqual(reserve.spent(short._replace(is_spooling=False), ["a"]), frozenset())
        self.assertEqual(reserve.spent(short, ["a"]), frozenset())

    def test_shares_are_of_the_room_that_there_is_and_what_servers_take_may_be_recorded_again(self) -> None:
        reserve, short = Reserve(), Rest(True, 0, 40, 100, 7)
        self.assertEqual(reserve.spent(short, ["a", "b"]), frozenset())
        reserve.use("a", 19)
        self.assertEqual(reserve.spent(short._replace(room=21), ["a", "b"]), frozenset())
        reserve.use("a", 1)
        self.assertEqual(reserve.spent(short._replace(room=20), ["a", "b"]), {"a"})
        self.assertEqual(reserve.spent(short._replace(room=21, taken=8), ["a", "b"]), frozenset())
        reserve.use("a", 1)
        self.assertEqual(reserve.spent(short._replace(room=20, taken=8), ["a", "b"]), {"a"})

    def test_as_many_clients_as_may_be_known_are_and_one_more_is_one_of_the_others(self) -> None:
        drops = Drops()
        for number in range(MAX_DROPPERS + 1):
            drops.count(f"web/{number}", {"ring_full": number + 1, "malformed": 0})
        drops.count("web/none", {"malformed": 0})
        worst = drops.worst({"web/7": {"no_ring": 10**6}})
        self.assertEqual((len(worst), worst["web/7"]), (MAX_DROPPERS_SHOWN, {"no_ring": 10**6, "ring_full": 8}))
        self.assertEqual(len(drops._counts), MAX_DROPPERS + 1)
        self.assertEqual(drops._counts[OTHERS], {"ring_full": MAX_DROPPERS + 1, "malformed": 0})


class Held(Hosted):
    def test_as_many_thin_batches_as_may_wait_in_memory_do_and_more_move_to_the_spool(self) -> None:
        self.patch(keeping, "MAX_PENDING_BATCHES", 12)
        world = self.world
        while world.keeper.unacknowledged < 12:
            world.record(5)
            world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.moves), (12, 0))
        world.record(5)
        world.tick()
        world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.moves), (0, 1))
        self.drain()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (world.recorded, {}))

    def test_as_many_thin_batches_as_may_be_retained_are_and_the_oldest_are_given_up_for_more(self) -> None:
        self.patch(books, "MAX_RETAINED_BATCHES", 9)
        world = self.world
        for _ in range(6):
            world.record(5)
            world.tick()
            world.send()
        world.tick()
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (9, 9))
