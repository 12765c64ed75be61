"""The outbox: what a kill between any two steps leaves, and what hostile bytes do."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.locks import AgentRunning
from taba.agent.outbox import (
    MIN_OUTBOX_BYTES,
    PAGE,
    TABLE_BYTES,
    VERSION,
    Covered,
    EncodedBatch,
    OtherVersion,
    Outbox,
    OutboxCorrupt,
    OutboxFull,
    Table,
    group_bytes,
)
from taba.agent.segment import open_outbox
from taba.batch import BatchId
from tests.agent.moments import at
from tests.agent.outboxes import SIZE, Killed, formatted
from tests.examples import examples


def fresh(number: int, content: bytes) -> EncodedBatch:
    return EncodedBatch(BatchId(b"s" * 16, number % 7, number), at(1.0), len(content), content)


def kept(outbox: Outbox) -> list[tuple[int, bytes]]:
    return [(batch.id.number, outbox.read(batch.position, batch.length)) for group in outbox.groups() for batch in group.batches]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 60_000), max_size=4), st.integers(0, 3)),
        st.tuples(st.just("release"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 6), st.integers(0, 100)),
    ),
    max_size=30,
)


class FormatTests(SynchronousTestCase):
    @given(STEPS)
    @examples(200)
    def test_whatever_kills_between_two_steps_a_publish_counts_whole_or_not_at_all(self, steps: list[tuple[str, Any, int]]) -> None:
        memory, outbox = formatted()
        model: list[tuple[int, list[tuple[int, bytes]]]] = []  # (end, batches) of each group
        table, number = Table(), 0
        for step, first, second in steps:
            if step == "kill":
                memory.steps, memory.torn = int(first), second
                continue
            if step == "append":
                batches = [fresh(number + place, os.urandom(4) * (length // 4)) for place, length in enumerate(first)]
                number += len(batches)
                after = Table((Covered(b"r" * 16, 0, number, 0),) * second, (), (), number)
                try:
                    group = outbox.append(after, batches)
                except OutboxFull:
                    self.assertGreater(group_bytes(batches), outbox.free)
                except Killed:
                    memory.steps = None
                    before = outbox.head
                    outbox = Outbox(memory)
                    if outbox.table == after and (outbox.head > before or not batches):
                        table = after
                        if batches:
                            model.append((outbox.head, [(batch.id.number, bytes(batch.content)) for batch in batches]))
                else:
                    table = after
                    if batches:
                        model.append((group.end, [(batch.id.number, bytes(batch.content)) for batch in batches]))
            elif model:
                end = model[min(int(first), len(model) - 1)][0]
                try:
                    outbox.release(end)
                    model = [group for group in model if group[0] > end]
                except Killed:  # before the release counted, or before its pages were given back
                    memory.steps = None
                    outbox = Outbox(memory)
                    model = [group for group in model if group[0] > outbox.released]
            # but for the page that both ends may share, only pages that are needed are had
            live = (outbox.head + PAGE - 1) // PAGE - outbox.released // PAGE
            self.assertLessEqual(len(memory.had), 1 + 2 * (TABLE_BYTES // PAGE) + live)
            self.assertEqual(kept(outbox), [batch for _, batches in model for batch in batches])
            self.assertEqual(outbox.table, table)
        memory.steps = None
        reopened = Outbox(memory)
        self.assertEqual((kept(reopened), reopened.table), (kept(outbox), table))

    @given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=20), st.booleans())
    @example([(8, b"\0")], False)  # its version
    @examples(300)
    def test_hostile_bytes_are_corrupt_or_read_and_nothing_else(self, patches: list[tuple[int, bytes]], in_header: bool) -> None:
        memory, outbox = formatted()
        outbox.append(Table((), (b"x" * 16,), (), 5), [fresh(1, b"one"), fresh(2, b"two")])
        for offset, content in patches:
            offset = offset % (PAGE + 200) if in_header else offset
            memory.content[offset : offset + len(content)] = content
        del memory.content[SIZE:]
        with contextlib.suppress(OutboxCorrupt, OtherVersion):  # which a byte of the version is
            kept(Outbox(memory))

    def test_a_group_that_fits_exactly_is_taken_and_one_byte_more_is_not(self) -> None:
        _, outbox = formatted()
        overhead = group_bytes([fresh(1, b"")])
        with self.assertRaises(OutboxFull):
            outbox.append(Table(), [fresh(1, bytes(outbox.capacity - overhead + 8))])
        outbox.append(Table(), [fresh(1, bytes(outbox.capacity - overhead))])
        self.assertLess(outbox.free, 8)

    def test_a_table_that_does_not_fit_changes_nothing(self) -> None:
        _, outbox = formatted()
        with self.assertRaises(OutboxFull):
            outbox.append(Table((), (b"x" * 16,) * 10_000), [fresh(1, b"one")])
        self.assertEqual((outbox.head, kept(outbox), outbox.table), (0, [], Table()))


class SegmentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.directory)

    def test_what_was_published_is_there_after_reopening(self) -> None:
        outbox, segment, problem = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.assertIsNone(problem)
        outbox.append(Table(recorded=3), [fresh(1, b"one")])
        segment.close()
        outbox, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES * 2, self.directory)
        self.addCleanup(segment.close)
        self.assertEqual((kept(outbox), outbox.table.recorded, segment.size), ([(1, b"one")], 3, MIN_OUTBOX_BYTES))

    def test_a_second_one_is_told_who_holds_it(self) -> None:
        _, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.addCleanup(segment.close)
        with self.assertRaisesRegex(AgentRunning, f"process {os.getpid()} holds"):
            open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)

    def test_an_outbox_of_another_format_is_refused_in_a_sentence_and_left_as_it_is(self) -> None:
        _, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        path = segment.path
        segment.close()
        for other in (1, VERSION + 1):  # an upgrade, and a downgrade
            with open(path, "r+b") as file:
                file.seek(8)
                file.write(other.to_bytes(4, "little"))
            with self.assertRaisesRegex(OtherVersion, f"taba-agent.a is of format {other}; this version reads {VERSION}"):
                open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.assertEqual(os.listdir(self.directory), ["taba-agent.a"])

    def test_its_memory_is_had_as_it_is_needed_and_given_back(self) -> None:
        outbox, segment, _ = open_outbox("a", lambda: b"i" * 16, 64 << 20, self.directory)
        self.addCleanup(segment.close)
        held = lambda: os.stat(segment.path).st_blocks * 512  # noqa: E731
        empty = held()
        self.assertEqual((segment.size, empty), (64 << 20, PAGE + 2 * TABLE_BYTES))
        group = outbox.append(Table(), [fresh(1, bytes(1 << 20))])
        self.assertTrue(empty + (1 << 20) < held() < empty + (1 << 20) + 2 * PAGE)
        outbox.release(group.end)
        self.assertLessEqual(held(), empty + PAGE)

    def test_one_that_is_cut_is_whole_again_and_what_comes_then_is_found_by_the_next(self) -> None:
        for left, has_waiting in ((0, False), (PAGE + 8, False), (0, True), (PAGE, True)):
            outbox, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
            group = outbox.append(Table(recorded=7, sequence=1), [fresh(1, b"x" * 100)])
            if not has_waiting:
                outbox.release(group.end)
            os.truncate(segment.path, left)
            self.assertTrue(segment.is_cut)
            segment.mend(outbox)
            self.assertFalse(segment.is_cut)
            later = Table(recorded=9, sequence=2)
            outbox.append(later, [fresh(2, b"y" * 100)])
            outbox.append(later._replace(sequence=3), ())
            segment.close()  # as a kill would
            again, segment, problem = open_outbox("a", lambda: b"j" * 16, MIN_OUTBOX_BYTES, self.directory)
            if has_waiting:
                self.assertIn("unreadable", str(problem))  # what waited is gone, and that is said
            else:
                self.assertEqual((problem, again.id, again.table.recorded), (None, b"i" * 16, 9))
                self.assertEqual([stored.id.number for found in again.groups() for stored in found.batches], [2])
            segment.close()
            segment.remove()

    def test_who_publishes_in_one_that_is_cut_lives_on_and_what_a_kill_then_leaves_is_said(self) -> None:
        outbox, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        group = outbox.append(Table(recorded=3, sequence=1), [fresh(1, b"x" * 100)])
        os.truncate(segment.path, 0)
        child = os.fork()  # a store to what is mapped there would end the test
        if not child:
            with contextlib.suppress(BaseException):
                outbox.release(group.end)
                outbox.append(Table(recorded=7, sequence=2), [fresh(2, b"x" * 100)])
                os._exit(0)
            os._exit(1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        segment.close()  # as a kill would, before it is mended
        _, segment, problem = open_outbox("a", lambda: b"j" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.assertIn("unreadable (no outbox)", str(problem))
        segment.close()

    def test_one_that_is_cut_counts_as_that_until_there_was_room_for_its_head(self) -> None:
        outbox, segment, _ = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.addCleanup(segment.close)
        outbox.append(Table(recorded=7, sequence=1), [])
        os.truncate(segment.path, 0)

        def full(offset: int, length: int) -> None:
            raise OutboxFull("no room")

        with contextlib.ExitStack() as until_there_is_room:
            segment.reserve = full  # type: ignore[method-assign]
            until_there_is_room.callback(segment.__dict__.pop, "reserve")
            with self.assertRaises(OutboxFull):
                segment.mend(outbox)
            self.assertTrue(segment.is_cut)
        segment.mend(outbox)
        self.assertFalse(segment.is_cut)
        self.assertEqual((Outbox(segment).id, Outbox(segment).table.recorded), (b"i" * 16, 7))

    def test_garbage_is_set_aside_with_its_bytes_and_a_new_one_made(self) -> None:
        path = os.path.join(self.directory, "taba-agent.a")
        garbage = os.urandom(100_000)
        with open(path, "wb") as file:
            file.write(garbage)
            os.fchmod(file.fileno(), 0o600)
        outbox, segment, problem = open_outbox("a", lambda: b"i" * 16, MIN_OUTBOX_BYTES, self.directory)
        self.addCleanup(segment.close)
        self.assertIn("unreadable", str(problem))
        self.assertEqual(kept(outbox), [])
        with open(path + ".corrupt-1", "rb") as file:
            found = file.read()
        self.assertEqual((found[:12], found[16:]), (garbage[:12], garbage[16:]))
