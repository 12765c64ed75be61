"""Places and bytes that askers share: one that asks for ever more leaves the others theirs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba.places import MAX_PASSED, Crowded, Places, SharedBytes
from tests.examples import examples


class Shares(SynchronousTestCase):
    def take(self, places: Places, asker: str) -> Deferred[None]:
        return ensureDeferred(places.take(asker))

    def test_one_asker_has_its_share_and_not_one_more_and_another_finds_the_rest(self) -> None:
        places = Places("things", 4, 2)
        for _ in range(2):
            places.take_now("many")
        error = self.assertRaises(Crowded, places.take_now, "many")
        self.assertEqual(str(error), "2 things are yours, and of 4 places one asker has 2; ask again in a moment")
        places.take_now("b")
        places.take_now("c")
        error = self.assertRaises(Crowded, places.take_now, "d")
        self.assertIn("4 things are as many as may be, of which one asker has 2", str(error))
        self.assertEqual((places.held, places.share), (4, (2, 2)))
        places.give_back("many")
        places.take_now("d")
        for asker in ("many", "b", "c", "d"):
            places.give_back(asker)
        self.assertEqual((places.held, places.share, places.working), (0, (0, 2), Counter()))

    def test_what_fails_within_gives_its_place_back(self) -> None:
        places = Places("things", 4, 2)

        def fail() -> None:
            with places.within("a"):
                self.assertEqual(places.share.greatest, 1)
                raise ValueError

        self.assertRaises(ValueError, fail)
        self.assertEqual(places.held, 0)

    def test_who_comes_waits_behind_none_of_one_that_has_its_share(self) -> None:
        places = Places("things", 8, 4, 2, 1)
        many = [self.take(places, "many") for _ in range(4)]
        self.assertEqual([one.called for one in many], [True, False, False, False])
        self.successResultOf(self.take(places, "good"))
        waiting = self.take(places, "good")
        places.give_back("many")
        self.assertTrue(many[1].called)
        places.give_back("good")
        self.successResultOf(waiting)
        many[2].cancel()
        self.failureResultOf(many[2], CancelledError)
        self.assertEqual((places.held, places.share.greatest), (3, 2))

    def test_where_all_are_taken_who_has_most_gives_one_up_that_waits_and_what_is_being_done_goes_on(self) -> None:
        places = Places("things", 4, 3, 1, 1)
        many = [self.take(places, "many") for _ in range(3)]
        self.take(places, "b")
        good = self.take(places, "c")
        self.failureResultOf(many[2], Crowded)
        self.assertEqual((places.held, places.displaced, many[1].called, good.called), (4, 1, False, False))
        self.take(places, "d")
        self.failureResultOf(many[1], Crowded)
        self.failureResultOf(self.take(places, "e"), Crowded)  # nobody has two more than it
        self.assertEqual((places.held, places.displaced), (4, 2))

    def test_bytes_are_shared_and_what_comes_first_is_taken_whatever_its_size(self) -> None:
        room = SharedBytes("wait", 100, 50)
        large, other = room.enter("large"), room.enter("other")
        self.assertTrue(room.has_room(large, 1000))
        room.change(large, 60)
        self.assertFalse(room.has_room(large, 1))
        self.assertEqual(room.refusal(large, 1), "60 bytes of yours wait, and of 100 one sender has 50")
        self.assertTrue(room.has_room(other, 40))
        self.assertFalse(room.has_room(other, 41))
        self.assertIn("60 bytes wait, and 100 are as many as may be", room.refusal(other, 41))
        self.assertIs(room.enter("large"), large)
        self.assertEqual(room.share, (60, 50))
        room.change(large, -60)
        for taker in (large, large, other):
            room.leave(taker)
        self.assertEqual((room.held, room.share.greatest), (0, 0))

    @given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(("take", "now", "back", "leave"))), max_size=60))
    @examples(60)
    def test_whatever_comes_no_bound_is_passed_and_nobody_waits_where_there_is_room(self, steps: list[tuple[str, str]]) -> None:
        places = Places("things", 6, 3, 3, 2)
        waiting: list[tuple[str, Deferred[None]]] = []
        for asker, step in steps:
            if step == "take":
                waiting.append((asker, self.take(places, asker)))
            elif (
                step == "now" and not any(not one.called for _, one in waiting) and places.working.total() < 3 and places.working[asker] < 2
            ):
                try:
                    places.take_now(asker)
                except Crowded:
                    continue
            elif step == "back" and places.working.get(asker):
                places.give_back(asker)
            elif step == "leave":
                for who, one in waiting:
                    if who == asker and not one.called:
                        one.cancel()
                        break
            for _, one in waiting:
                if one.called:
                    one.addErrback(lambda failure: failure.trap(Crowded, CancelledError) and None)
            waits = Counter(who for who, one in waiting if not one.called)
            self.assertEqual(places.held, waits.total() + places.working.total())
            self.assertLessEqual(places.held, 6)
            self.assertLessEqual(places.share.greatest, 3)
            self.assertLessEqual(places.working.total(), 3)
            self.assertLessEqual(max(places.working.values(), default=0), 2)
            if places.working.total() < 3:
                self.assertTrue(all(places.working[who] == 2 for who in waits))
        for _, one in waiting:
            one.addErrback(lambda failure: failure.trap(Crowded, CancelledError) and None)

    @given(worked=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=4), new=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=3))
    @examples(40)
    def test_who_waits_has_a_turn_however_many_new_askers_come(self, worked: list[float], new: list[float]) -> None:
        done = dict(enumerate(worked))
        places = Places("things", 1_000, 10, 1, 1, lambda asker: done.get(int(asker), new[int(asker) % len(new)]))
        places.take_now("99")
        old = [self.take(places, str(number)) for number in done]
        under_way = ["99"]
        for number in range(100, 100 + (MAX_PASSED + 1) * len(old)):
            self.take(places, str(number))
            places.give_back(under_way.pop())
            under_way += places.working
        self.assertEqual([one.called for one in old], [True] * len(old))

    def test_who_lets_others_go_first_does_so_as_often_as_is_said_and_then_again(self) -> None:
        places = Places("things", 1_000, 100, 1, 1, lambda asker: float(asker == "many"))
        places.take_now("new")
        many = [self.take(places, "many") for _ in range(3)]
        turns: list[str] = []
        for _ in range(2 * (MAX_PASSED + 1)):
            self.take(places, "new")
            places.give_back(*places.working)
            turns += places.working
        self.assertEqual(turns, ["new"] * MAX_PASSED + ["many"] + ["new"] * MAX_PASSED + ["many"])
        self.assertEqual([one.called for one in many], [True, True, False])
