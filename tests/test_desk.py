"""The desk of an input: what a killed one had in its hand is there for the next one, however far it had come."""

from __future__ import annotations

import os
from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import MAX_NOTE
from taba.desk import COUNTS, DESK_BYTES, EXAMPLE_BYTES, MAX_COUNTS, MAX_NOTES, PLACE, SHEET_BYTES, Desk, desk_path, open_desk


class Killed(Exception):
    """The process ends here."""


class Desks(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(self.mktemp(), "desk")
        os.makedirs(os.path.dirname(self.path))

    def open(self) -> Desk:
        descriptor = open_desk(self.path)
        self.addCleanup(os.close, descriptor)
        return Desk(descriptor)

    def receive(self, desk: Desk, content: bytes) -> None:
        desk.sheet()[: len(content)] = content

    def test_what_is_done_with_is_not_in_hand_and_its_counts_hold(self) -> None:
        desk = self.open()
        self.receive(desk, b"one")
        self.assertEqual(desk.hold(3, b"1.2.3.4"), b"one")
        desk.progress[0] = 2
        desk.done(array("Q", [1, 2, 3]))
        self.assertEqual((self.open().held(), self.open().counts(3)), (None, [1, 2, 3]))

    def test_words_that_nobody_wrote_are_found_and_what_may_be_is_left(self) -> None:
        for word in range(1, 16 + 2 * MAX_COUNTS):
            if word in (4, *range(7, 16)):
                continue  # lengths, which no reader goes beyond, and an origin
            for value in (1 << 64) - 1, 1 << 63:
                desk = self.open()
                desk.count(array("Q", [1, 2, 3]))
                self.receive(desk, b"a:1|c")
                desk.hold(5, b"::1")
                self.assertFalse(self.open().mend())
                desk._words[word] = value
                found = self.open()
                self.assertTrue(found.mend(), word)
                self.assertFalse(self.open().mend())
                self.assertEqual((found.held(), found.counts(len(COUNTS))[PLACE["given_up"]]), (None, 1))
                self.receive(found, b"b")
                found.hold(1, b"::2")
                found.done(array("Q", [4]))
                self.assertEqual(self.open().counts(1), [4])

    def test_notes_wait_until_they_are_settled_and_as_many_as_may(self) -> None:
        desk, agents = self.open(), self.open()
        self.assertEqual((agents.next_note(), agents.notes_waiting), (None, 0))
        for number in range(MAX_NOTES):
            self.assertTrue(desk.note(f"note {number}", float(number)))
        self.assertFalse(desk.note("one too many", 1.0))
        self.assertEqual((agents.notes_waiting, agents.next_note(), agents.next_note()), (MAX_NOTES, ("note 0", 0.0), ("note 0", 0.0)))
        agents.settle_note(is_refused=False)
        agents.settle_note(is_refused=True)
        longest = "\N{GRINNING FACE}" * MAX_NOTE
        self.assertTrue(desk.note(longest, -1.0) and desk.note(longest + "x", 5.0))
        self.assertEqual((agents.notes_settled, agents.notes_waiting), ((1, 1), MAX_NOTES))
        for number in range(2, MAX_NOTES):
            self.assertEqual(self.open().next_note(), (f"note {number}", float(number)))  # a later Agent's
            agents.settle_note(is_refused=False)
        for time in (0.0, 5.0):  # a time that is none is no reason to lose what is said
            self.assertEqual(agents.next_note(), (longest, time))
            agents.settle_note(is_refused=False)
        agents.settle_note(is_refused=False)
        self.assertEqual(
            (agents.notes_settled, self.open().mend(), self.open().notes_settled), ((MAX_NOTES + 1, 1), False, (MAX_NOTES + 1, 1))
        )

    def test_counts_of_notes_that_nobody_wrote_are_found_and_read_as_none(self) -> None:
        first = 16 + 3 * MAX_COUNTS + EXAMPLE_BYTES // 8
        for words in ((MAX_NOTES + 1, 0, 0), (0, 1, 0), (5, 5, 6), ((1 << 64) - 1, (1 << 64) - 1, 0)):
            desk = self.open()
            for place, word in enumerate(words):
                desk._words[first + place] = word
            desk.next_note()
            desk.settle_note(is_refused=True)
            self.assertTrue(self.open().mend())
            self.assertEqual((self.open().notes_waiting, self.open().notes_settled), (0, (0, 0)))

    @given(st.binary(max_size=300), st.integers(8, 2000))
    def test_no_desk_ends_who_works_at_it(self, garbage: bytes, place: int) -> None:
        descriptor = open_desk(self.path)
        try:
            os.pwrite(descriptor, garbage, place)
            desk = Desk(descriptor)
            desk.mend()
            desk.held()
            desk.count(array("Q", [count + 1 for count in desk.counts(len(COUNTS))]))
            desk.see(desk.counts(len(COUNTS)))
            self.assertEqual(desk.seen(len(COUNTS)), desk.counts(len(COUNTS)))
            self.assertFalse(desk.mend())
            while desk.next_note() is not None:
                desk.settle_note(is_refused=False)
            self.assertTrue(desk.note("text", 1.0))
            self.assertEqual(desk.next_note(), ("text", 1.0))
            desk.close()
        finally:
            os.close(descriptor)
            os.unlink(self.path)

    def test_the_next_one_finds_what_was_in_hand_and_where_it_stood(self) -> None:
        desk = self.open()
        self.receive(desk, b"earlier, and longer")
        desk.hold(19, b"")
        desk.done(array("Q", [1]))
        self.receive(desk, b"a:1|c")
        self.assertEqual(self.open().held(), (b"", b"a:1|c", 0, 0, 0))  # before anybody could say how much it is
        desk.hold(5, b"::1")
        for progress, begun, unsure in ((0, 0, 0), (1, 1, 1), (2, 1, 0), (4, 2, 0)):
            desk.progress[0] = progress
            held = self.open().held()
            assert held is not None
            self.assertEqual((held.origin, held.content, held.begun), (b"::1", b"a:1|c", begun))
            desk._words[6], unsure_now = 0, held.unsure
            self.assertEqual(unsure_now, unsure)

    def test_whoever_takes_it_up_is_done_with_it(self) -> None:
        first = self.open()
        self.receive(first, b"a:1|c")
        first.hold(5, b"x")
        second = self.open()
        held = second.held()
        assert held is not None
        second.progress[0] = 2
        second.done(array("Q", [7]))
        third = self.open()
        self.assertEqual((third.held(), third.counts(1)), (None, [7]))
        self.receive(third, b"b")
        third.hold(1, b"x")
        again = self.open().held()
        assert again is not None
        self.assertEqual((again.content, again.tries), (b"b", 0))

    def test_tries_are_counted_until_somebody_is_done(self) -> None:
        desk = self.open()
        self.receive(desk, b"bad")
        desk.hold(3, b"")
        self.assertEqual([held.tries for held in (self.open().held() for _ in range(3)) if held], [0, 1, 2])
        self.open().count(array("Q", [1]))
        self.assertIsNone(self.open().held())

    def test_an_empty_hand_holds_nothing(self) -> None:
        self.assertIsNone(self.open().held())
        desk = self.open()
        desk.sheet()
        self.assertIsNone(self.open().held())

    def test_the_largest_datagram_fits(self) -> None:
        desk = self.open()
        self.receive(desk, b"x" * SHEET_BYTES)
        desk.hold(SHEET_BYTES, b"o" * 100)
        held = self.open().held()
        assert held is not None
        self.assertEqual((len(held.content), held.origin), (SHEET_BYTES, b"o" * 56))

    def test_an_example_is_cut_at_its_bound(self) -> None:
        desk = self.open()
        desk.show(b"x" * EXAMPLE_BYTES)
        self.assertEqual(self.open().example, b"x" * (EXAMPLE_BYTES - 8))
        desk.show(b"short")
        self.assertEqual(self.open().example, b"short")
        self.assertLessEqual(len(COUNTS), MAX_COUNTS)

    def test_what_is_no_desk_is_made_one_and_what_is_a_strangers_is_refused(self) -> None:
        with open(self.path, "wb") as file:
            file.write(b"x" * DESK_BYTES)
        os.chmod(self.path, 0o644)
        self.assertRaises(PermissionError, open_desk, self.path)
        os.chmod(self.path, 0o600)
        self.assertEqual(self.open().counts(2), [0, 0])
        os.rename(self.path, self.path + "2")
        os.symlink(self.path + "2", self.path)
        self.assertRaises(OSError, open_desk, self.path)

    def test_each_address_of_each_agent_has_its_own(self) -> None:
        self.assertEqual(len({desk_path(agent, text) for agent in ("a", "b") for text in ("udp:1", "udp:2")}), 4)

    @given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), max_size=12))
    def test_wherever_it_is_killed_each_event_is_recorded_once_or_unsure(self, packets: list[tuple[int, int]]) -> None:
        """Each packet is so many Events; after so many steps of its handling the process is killed."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        recorded: list[int] = []
        counted: list[Any] = [0]
        left = 0

        def step() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        def handle(desk: Desk, content: bytes, begun: int, unsure: int) -> None:
            for place in range(begun, len(content)):
                desk.progress[0] = 2 * place + 1
                step()
                recorded.append(content[place])
                step()
                desk.progress[0] = 2 * place + 2
            counted[0] += unsure
            desk.done(array("Q", counted))

        desk = self.open()
        number = 0
        for size, kill in packets:
            content = bytes(range(number + 1, number + size + 1))
            number += size
            left = kill
            try:
                self.receive(desk, content)
                step()
                desk.hold(size, b"o")
                handle(desk, content, 0, 0)
            except Killed:
                desk, left = self.open(), 0
                counted = desk.counts(1)
                held = desk.held()
                assert held is not None
                handle(desk, held.content, held.begun, held.unsure)
        self.assertEqual(len(recorded), len(set(recorded)))
        self.assertLessEqual(set(range(1, number + 1)) - set(recorded), set(range(1, number + 1)))
        missing = number - len(recorded)
        self.assertLessEqual(missing, desk.counts(1)[0])
        self.assertLessEqual(desk.counts(1)[0], sum(1 for _, kill in packets if kill))
