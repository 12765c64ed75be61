"""What Tabs mean is kept beside them: with a Tab, and no longer than it; the later saying stands."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.batch import Meaning
from taba.server import keys
from taba.server.fold import deciding

from ..samples import MemoryStore, Sum, Words, batch, column, lookup_of, tab_in

A, B = tab_in(0), tab_in(0, 1)
LOOKUP = lookup_of(Sum(), Words())


def saying(number: int, columns: list[Any], *meanings: Meaning, bad: int = 0) -> Any:
    item = batch(1, number, columns)
    return item._replace(batch=item.batch._replace(meanings=meanings, bad_meanings=bad))


class Meanings(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def kept(self) -> dict[bytes, bytes]:
        return dict(self.store.keys.get(keys.meanings(0), {}))

    def fields(self, tab: str) -> list[bytes | None]:
        return [self.kept().get(field) for field in keys.meaning_fields(tab.encode())]

    def test_the_later_stands_and_what_it_leaves_out_stays(self) -> None:
        self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], Meaning(A, "s", "old"))])
        self.assertEqual(self.fields(A), [b"s", b"old"])
        self.store.cycle(LOOKUP, [saying(2, [column(A, "Sum", [1.0])], Meaning(A, "", "new")), saying(3, [], Meaning(A, "ms", ""))])
        self.assertEqual(self.fields(A), [b"ms", b"new"])

    def test_a_batch_that_came_before_says_nothing_again(self) -> None:
        self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], Meaning(A, "s", "old"))])
        self.store.cycle(LOOKUP, [saying(2, [], Meaning(A, "s", "new"))])
        outcome = self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], Meaning(A, "s", "old"))])
        self.assertEqual((outcome.commands, self.fields(A)), ([], [b"s", b"new"]))

    def test_what_a_tab_means_whose_events_are_dead_letters_is_kept_for_when_it_is_there(self) -> None:
        elsewhere = tab_in(1)
        self.store.cycle(
            LOOKUP,
            [
                saying(
                    1,
                    [column(A, "Zork", [1.0]), column(B, "Words", ["bad"]), column(elsewhere, "Sum", [1.0])],
                    *[Meaning(tab, "s", "d") for tab in (A, B, elsewhere)],
                )
            ],
        )
        self.assertEqual((self.fields(A), self.fields(B), self.fields(elsewhere)), ([b"s", b"d"], [b"s", b"d"], [None, None]))

    def test_of_tabs_that_are_not_there_no_more_is_kept_than_the_bound(self) -> None:
        self.patch(deciding, "MEANINGS_OF_ABSENT", 2)
        tabs = [tab_in(0, number) for number in range(5)]
        self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], *[Meaning(tab, "s", "d") for tab in tabs])])
        # the one that is there, and as many as it and the bound leave room for
        self.assertEqual(self.fields(A), [b"s", b"d"])
        self.assertEqual(len(self.kept()), 2 + 2 * 2)
        self.store.cycle(LOOKUP, [saying(2, [column(B, "Sum", [1.0])], Meaning(tabs[4], "x", "y"), Meaning(B, "m", "n"))])
        self.assertEqual((self.fields(B), len(self.kept())), ([b"m", b"n"], 6))

    def test_what_did_not_decode_is_counted_once(self) -> None:
        outcome = self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], Meaning(A, "s", ""), bad=3)])
        self.assertEqual((outcome.bad_meanings, outcome.folded), (3, 1))
        self.assertEqual(self.store.cycle(LOOKUP, [saying(1, [column(A, "Sum", [1.0])], bad=3)]).bad_meanings, 0)
