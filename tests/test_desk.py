"""The desk of an input: what a killed one had in its hand is there for the next one, however far it had come."""

from __future__ import annotations

import os
from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import MAX_NOTE
from taba.desk import (
    COUNTS,
    DATAGRAM_BYTES,
    DESK_BYTES,
    EXAMPLE_BYTES,
    MAX_COUNTS,
    MAX_NOTES,
    MAX_ORIGIN_NAMES,
    MAX_PACKETS,
    PLACE,
    SHEET_BYTES,
    Desk,
    Held,
    desk_path,
    open_desk,
)


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

    def held(self, desk: Desk | None = None) -> Held:
        found = (desk or self.open()).held()
        assert found is not None
        return found

    def test_what_is_done_with_is_not_in_hand_and_its_counts_hold(self) -> None:
        desk = self.open()
        self.receive(desk, b"one")
        desk.hold(3, b"1.2.3.4")
        self.assertEqual(desk.taken(0, 3), b"one")
        desk.progress[0] = 2
        desk.done(array("Q", [1, 2, 3]))
        self.assertEqual((self.open().held(), self.open().counts(3)), (None, [1, 2, 3]))

    def test_words_that_nobody_wrote_are_found_and_what_may_be_is_left(self) -> None:
        for word in range(1, 16 + 2 * MAX_COUNTS):
            if word in (4, *range(7, 16)):
                continue  # lengths, which no reader goes beyond, a bit for each packet, and what is not used
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
        # before anybody could say how much it is
        self.assertEqual(self.open().held(), Held([(b"", b"a:1|c")], 0, 0, 0, False, 0, 0))
        desk.hold(5, b"::1")
        for progress, begun, unsure in ((0, 0, 0), (1, 1, 1), (2, 1, 0), (4, 2, 0)):
            desk.progress[0] = progress
            held = self.held()
            self.assertEqual((held.packets, held.at, held.begun), ([(b"::1", b"a:1|c")], 0, begun))
            desk._words[6], unsure_now = 0, held.unsure
            self.assertEqual(unsure_now, unsure)

    def test_whoever_takes_it_up_is_done_with_it(self) -> None:
        first = self.open()
        self.receive(first, b"a:1|c")
        first.hold(5, b"x")
        second = self.open()
        self.held(second)
        second.progress[0] = 2
        second.done(array("Q", [7]))
        third = self.open()
        self.assertEqual((third.held(), third.counts(1)), (None, [7]))
        self.receive(third, b"b")
        third.hold(1, b"x")
        again = self.held()
        self.assertEqual((again.packets, again.tries), ([(b"x", b"b")], 0))

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

    def test_packets_are_added_while_there_is_room_for_the_largest_one(self) -> None:
        desk = self.open()
        room: memoryview | None = desk.sheet()
        for content in (b"x" * DATAGRAM_BYTES, b"never"):
            assert room is not None
            self.assertEqual(len(room), DATAGRAM_BYTES)
            room[: len(content)] = content
            room = desk.hold(len(content), b"o" * 100)
            if room is None:
                break
        self.assertEqual(self.held().packets, [(b"o" * 56, b"x" * DATAGRAM_BYTES)])
        desk.done(array("Q", [1]))
        room, held = desk.sheet(), 0
        while room:
            room[:1000] = b"y" * 1000
            room, held = desk.hold(1000, b"o"), held + 1
        self.assertEqual((held, len(self.held().packets)), (MAX_PACKETS, MAX_PACKETS))
        self.assertEqual(desk.taken(0, 64 * 1001 - 1), b"\n".join([b"y" * 1000] * 64))
        desk.done(array("Q", [1]))
        room, held = desk.sheet(), 0
        while room is not None:
            room, held = desk.hold(3000, b"o"), held + 1
        self.assertEqual(held, -(-(SHEET_BYTES - DATAGRAM_BYTES + 1) // 3001))

    def test_each_packet_has_its_origin_and_with_as_many_names_as_there_may_be_they_are_written_anew(self) -> None:
        desk = self.open()
        for first in (0, 50):
            room: memoryview | None = desk.sheet()
            sent: list[tuple[bytes, bytes]] = []
            for number in range(first, first + MAX_ORIGIN_NAMES + 1):
                if room is None:
                    break
                sent.append((b"origin %d" % number, b"%d" % number))
                room[: len(sent[-1][1])] = sent[-1][1]
                room = desk.hold(len(sent[-1][1]), sent[-1][0])
            self.assertEqual((self.held().packets, len(sent)), (sent, MAX_ORIGIN_NAMES))
            desk.done(array("Q", [1]))

    def test_what_the_kernel_wrote_behind_what_is_accounted_for_is_a_packet_of_nobody_knows_whom(self) -> None:
        desk = self.open()
        for content in (b"a:1|c", b""):
            desk.sheet()[: len(content)] = content
            room = desk.hold(len(content), b"o")
            assert room is not None
            room[:5] = b"\0:2|c"
            self.assertEqual(self.held().packets, [(b"o", content), (b"", b"\0:2|c")])
            room[:] = b"b:2|c\n" + b"x" * (DATAGRAM_BYTES - 6)
            self.assertEqual(self.held().packets, [(b"o", content), (b"", b"b:2|c\n")])  # its last line has no end here
            self.assertEqual(desk.cut(), 6)
            desk.hold(6, b"p")
            self.assertEqual(self.held().packets, [(b"o", content), (b"p", b"b:2|c\n")])
            desk.done(array("Q", [1]))

    def test_packets_that_are_taken_up_one_by_one_are_tried_one_by_one(self) -> None:
        desk = self.open()
        room: memoryview | None = desk.sheet()
        for _ in range(3):
            assert room is not None
            room[:3] = b"bad"
            room = desk.hold(3, b"o")
        desk.progress[0] = 4
        self.assertEqual(self.held()[1:], (0, 0, 2, False, 0, 0))
        second = self.open()
        self.assertEqual(self.held(second)[1:], (0, 0, 2, False, 0, 1))
        self.assertEqual(second.apart(0, 2, is_next=False) + 1, (1 << 32) + 5)
        second.progress[0] = (1 << 32) + 5
        self.assertEqual(self.held()[1:], (0, 0, 3, True, 1, 2))
        third = self.open()
        self.held(third)
        third.apart(1, 0, is_next=True)
        self.assertEqual(self.held()[1:], (0, 1, 0, True, 1, 1))
        third.give_up(1)
        self.assertEqual(self.held()[1:], (0b10, 2, 0, True, 1, 1))
        third.give_up(2)
        self.assertEqual((self.held()[1:], self.open().mend()), ((0b110, 3, 0, True, 1, 1), False))
        third.done(array("Q", [1]))
        self.receive(third, b"a")
        third.hold(1, b"o")
        self.assertEqual(self.held()[1:], (0, 0, 0, False, 0, 0))

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

    @given(st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(1, 12), max_size=4)), max_size=8))
    def test_wherever_it_is_killed_each_event_is_recorded_once_or_unsure(self, sheets: list[tuple[list[int], list[int]]]) -> None:
        """Each packet is so many Events; after so many steps of handling a sheet, and of taking it up then, the process is killed."""
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

        def handle(desk: Desk, content: bytes, at: int) -> None:
            for place in content:
                desk.progress[0] = at + 1
                step()
                recorded.append(place)
                step()
                at += 2
                desk.progress[0] = at

        def take_up(desk: Desk) -> None:
            held = desk.held()
            if held is None:
                return
            begun = held.begun
            for place, (_, content) in enumerate(held.packets):
                if place >= held.at:
                    at = desk.apart(place, begun, place > held.at)
                    step()
                    handle(desk, content[begun:], at)
                    begun = max(0, begun - len(content))
            counted[0] += held.unsure
            desk.done(array("Q", counted))

        desk = self.open()
        first = number = 11  # beyond a line's end
        for sizes, kills in sheets:
            coming = iter(kills)
            left = next(coming, 0)
            taken = 0
            try:
                room: memoryview | None = desk.sheet()
                for size in sizes:
                    assert room is not None
                    room[:size] = bytes(range(number, number + size))
                    number += size
                    taken += size + 1
                    step()
                    room = desk.hold(size, b"o")
                    step()
                handle(desk, desk.taken(0, taken - 1).replace(b"\n", b""), 0)
                desk.done(array("Q", counted))
            except Killed:
                while True:
                    desk, left = self.open(), next(coming, 0)
                    counted = desk.counts(1)
                    try:
                        take_up(desk)
                        break
                    except Killed:
                        pass
        self.assertEqual(len(recorded), len(set(recorded)))
        missing = number - first - len(recorded)
        self.assertLessEqual(missing, desk.counts(1)[0])
        self.assertLessEqual(desk.counts(1)[0], sum(len(kills) for _, kills in sheets))
