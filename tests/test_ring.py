"""The ring's layout: what is written is read, and hostile bytes are refused."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import ring
from taba.bounds import MAX_RING_BYTES, MIN_RING_BYTES

TYPES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,63}", fullmatch=True)
NAMES = st.from_regex(r"[A-Zab./]{1,200}", fullmatch=True)


def page(size: int = 1 << 20, client: str = "web/3", **words: Any) -> bytearray:
    content = bytearray(ring.HEADER_BYTES)
    start = ring.encode_header(size, ring.ACCELERATED, 77, bytes(range(16)), 1e9, client)
    content[: len(start)] = start
    struct.pack_into("<Q", content, 0, ring.MAGIC)
    for offset, word in words.items():
        struct.pack_into("<Q", content, getattr(ring, offset), word)
    return content


class LayoutTests(SynchronousTestCase):
    def test_the_parts_fill_the_segment_without_overlap(self) -> None:
        size = MIN_RING_BYTES
        while size <= MAX_RING_BYTES:
            where = ring.layout(size)
            self.assertEqual(where.directory_offset, ring.HEADER_BYTES)
            self.assertEqual(where.directory_offset + where.directory_bytes, where.byte_ring_offset)
            self.assertEqual(where.byte_ring_offset + where.byte_ring_bytes, where.record_offset)
            self.assertEqual(where.record_offset + where.records * ring.RECORD_BYTES, size)
            self.assertEqual(where.records & (where.records - 1), 0)
            size *= 2

    def test_a_size_out_of_bounds_or_no_power_of_two_is_refused(self) -> None:
        for size in (
            0,
            4095,
            4097,
            8192,
            MIN_RING_BYTES - 1,
            MIN_RING_BYTES // 2,
            MIN_RING_BYTES + 4096,
            MAX_RING_BYTES + 1,
            MAX_RING_BYTES * 2,
        ):
            self.assertRaises(ring.MalformedRing, ring.layout, size)

    def test_the_fitting_size_is_rounded_down_to_a_power_of_two(self) -> None:
        self.assertEqual(ring.fitting_size(1 << 20), 1 << 20)
        self.assertEqual(ring.fitting_size((1 << 20) - 1), 1 << 19)
        self.assertEqual(ring.fitting_size(1), MIN_RING_BYTES)
        self.assertEqual(ring.fitting_size(1 << 50), MAX_RING_BYTES)

    def test_the_agents_words_and_the_producers_lie_on_lines_of_their_own(self) -> None:
        lines = {offset // 128 for offset in (ring.TAIL_OFFSET, ring.BYTE_TAIL_OFFSET, ring.RETIRED_OFFSET)}
        others = {offset // 128 for offset in (ring.DIRECTORY_COUNT_OFFSET, ring.DIRECTORY_USED_OFFSET)}
        counts = {(ring.DROPS_OFFSET + 8 * place) // 128 for place in range(ring.MAX_DROP_REASONS)}
        self.assertEqual(len(lines), 1)
        self.assertEqual(len(lines | others | counts), 3)
        self.assertLess(ring.CLIENT_OFFSET + ring.MAX_CLIENT_BYTES, ring.DIRECTORY_COUNT_OFFSET)


class WordTests(SynchronousTestCase):
    @given(st.integers(0, ring.MAX_TABS - 1), st.integers(0, 255), st.integers(0, ring.LAP_MASK))
    def test_a_commit_word_comes_back(self, tab: int, flags: int, lap: int) -> None:
        word = ring.commit_word(tab, flags, lap)
        self.assertLess(word, 2**64)
        self.assertEqual(ring.split_commit(word), (tab, flags, lap))

    @given(st.integers(0, 2**70), st.sampled_from([2048, 32768]))
    def test_neighbouring_laps_differ_and_the_first_is_not_zero(self, position: int, records: int) -> None:
        self.assertNotEqual(ring.lap_of(position, records), ring.lap_of(position + records, records))
        self.assertEqual(ring.lap_of(position % records, records), 1)


class HeaderTests(SynchronousTestCase):
    def test_a_header_comes_back(self) -> None:
        agent: dict[str, Any] = {"TAIL_OFFSET": 5, "BYTE_TAIL_OFFSET": 6, "RETIRED_OFFSET": 1}
        content = page(**agent, DIRECTORY_COUNT_OFFSET=2, DIRECTORY_USED_OFFSET=48, DROPS_OFFSET=9)
        header = ring.parse_header(bytes(content), 1 << 20)
        self.assertEqual(header, ring.RingHeader(1 << 20, 1, 77, bytes(range(16)), 1e9, "web/3", 5, 6, True, 2, 48, {"ring_full": 9}))
        self.assertTrue(header.is_accelerated)

    def test_a_count_of_a_reason_without_a_name_is_kept(self) -> None:
        words = struct.pack("<16Q", *[0] * 15, 4)
        self.assertEqual(ring.parse_drops(words), {"reason_15": 4})

    def test_a_page_without_magic_is_unmade(self) -> None:
        self.assertTrue(ring.is_unmade(bytes(4096)))
        self.assertFalse(ring.is_unmade(bytes(page())))
        self.assertRaises(ring.MalformedRing, ring.parse_header, bytes(4096), 1 << 20)

    def test_what_breaks_a_bound_is_refused(self) -> None:
        def broken(offset: int, form: str, *fields: Any) -> Any:
            content = page()
            struct.pack_into(form, content, offset, *fields)
            return content

        for content in (
            broken(ring.VERSION_OFFSET, "<I", 1),
            broken(ring.SIZE_OFFSET, "<Q", 1 << 21),
            broken(ring.SIZE_OFFSET, "<Q", 12345),
            broken(ring.CREATED_OFFSET, "<d", float("nan")),
            broken(ring.CLIENT_LENGTH_OFFSET, "<Q", 201),
            broken(ring.CLIENT_LENGTH_OFFSET, "<Q", 0),
            broken(ring.CLIENT_LENGTH_OFFSET, "<Q", 2**63),
            broken(ring.CLIENT_OFFSET, "<5s", b"a\xffb c"),
            broken(ring.DIRECTORY_COUNT_OFFSET, "<QQ", 3, 16),
            broken(ring.DIRECTORY_COUNT_OFFSET, "<QQ", 1, 1 << 20),
            page()[:-1],
        ):
            self.assertRaises(ring.MalformedRing, ring.parse_header, bytes(content), 1 << 20)

    @given(st.binary(max_size=300), st.binary(max_size=600), st.integers(0, 2**31))
    def test_any_bytes_are_a_header_or_refused(self, start: bytes, rest: bytes, size: int) -> None:
        content = (struct.pack("<QIIQ", ring.MAGIC, ring.VERSION, 0, 1 << 16) + start).ljust(512, b"\0") + rest
        with contextlib.suppress(ring.MalformedRing):
            ring.parse_header(content.ljust(4096, b"\0"), size)


class DirectoryTests(SynchronousTestCase):
    @given(st.lists(st.tuples(TYPES, NAMES), max_size=20))
    def test_a_directory_comes_back_whole_and_piecewise(self, tabs: Any) -> None:
        tabs = [(type, name) for type, name in tabs if not name.startswith("taba.") and type.isascii()]
        content = b"".join(ring.encode_entry(*tab) for tab in tabs)
        self.assertEqual(len(content) % 8, 0)
        entries, used = ring.parse_directory(content + bytes(64), len(tabs))
        self.assertEqual(([entry[:2] for entry in entries], used), (tabs, len(content)))
        position = 0
        for tab in tabs:
            (entry,), used = ring.parse_directory(content[position:], 1)
            self.assertEqual(entry[:2], tab)
            position += used

    def test_an_entry_that_breaks_the_rules_harms_no_other(self) -> None:
        tabs = [("Gauge", "a"), ("Gauge", "a b"), ("9", "c"), ("Gauge", "d")]
        content = b"".join(ring.encode_entry(*tab) for tab in tabs)
        entries, _ = ring.parse_directory(content, 4)
        self.assertEqual(entries[0], ring.TabEntry("Gauge", "a"))
        self.assertIsInstance(entries[1], ring.BadEntry)
        self.assertIsInstance(entries[2], ring.BadEntry)
        self.assertEqual(entries[3], ring.TabEntry("Gauge", "d"))

    @given(st.binary(max_size=200), st.integers(0, 50))
    def test_any_bytes_are_a_directory_or_refused(self, content: bytes, count: int) -> None:
        try:
            entries, used = ring.parse_directory(content, count)
        except ring.MalformedRing:
            return
        self.assertEqual(len(entries), count)
        self.assertLessEqual(used, len(content))

    @given(st.booleans(), st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=64), st.text(max_size=400))
    def test_what_a_tab_is_comes_back_beside_its_cell(self, has_cell: bool, unit: str, description: str) -> None:
        description = description.replace("\0", "").encode(errors="replace").decode()
        before = ring.encode_entry("Gauge", "a")
        content = before + ring.encode_entry("UpDown", "b", unit, description, has_cell)
        (_, entry), used = ring.parse_directory(content, 2)
        cell = len(before) + ring.ENTRY_BYTES if has_cell else None
        self.assertEqual((entry, used), (ring.TabEntry("UpDown", "b", unit, description, cell), len(content)))
        if cell is not None:
            self.assertEqual(ring.parse_cell(content[cell : cell + ring.CELL_BYTES]), ring.Cell(0.0, 0, 2 * (ring.Sum(0, 0.0),)))

    def test_the_sum_that_holds_is_the_last_that_covers_no_more_than_is_covered(self) -> None:
        sums = (ring.Sum(10, 1.0), ring.Sum(20, 2.0))
        cell = ring.Cell(0.0, 0, sums)
        none, first, second = (0, ring.Sum(0, 0.0)), (0, sums[0]), (1, sums[1])
        self.assertEqual([cell.sum_at(covered) for covered in (9, 10, 19, 20, 99)], [none, first, first, second, second])
        content = bytes(16) + ring.encode_sum(sums[0]) + ring.encode_sum(sums[1])
        self.assertEqual(ring.parse_cell(content.ljust(ring.CELL_BYTES, b"\0")), cell)

    def test_a_unit_or_description_that_breaks_the_rules_is_a_bad_entry(self) -> None:
        for unit, description in (("x" * 65, ""), ("a\nb", ""), ("", "x" * 401), ("", "a\0b")):
            (entry,), _ = ring.parse_directory(ring.encode_entry("Gauge", "a", unit, description), 1)
            self.assertIsInstance(entry, ring.BadEntry)
        (entry,), _ = ring.parse_directory(ring.encode_entry("Gauge", "a", "x" * 64, "x" * 400), 1)
        self.assertIsInstance(entry, ring.TabEntry)


class CountingTests(SynchronousTestCase):
    def test_a_segment_of_a_header_alone_takes_no_records_and_counts(self) -> None:
        where = ring.layout(ring.COUNTING_BYTES)
        self.assertEqual((where.records, where.directory_bytes, where.byte_ring_bytes), (0, 0, 0))
        content = page(ring.COUNTING_BYTES)
        for place, count in ((0, 7), (ring.SLOTS - 1, 5)):
            content[ring.SLOTS_OFFSET + ring.SLOT_BYTES * place] = count
        self.assertEqual(ring.parse_header(bytes(content), 4096).drops, {"ring_full": 12})
        self.assertEqual((ring.SLOT_BYTES, ring.SLOTS_OFFSET % 128), (8 * ring.MAX_DROP_REASONS, 0))


class SegmentNameTests(SynchronousTestCase):
    def test_a_segments_name_tells_its_agent(self) -> None:
        name = ring.segment_name("blue-1", bytes(8))
        self.assertEqual(ring.segment_agent(name), "blue-1")
        self.assertTrue(name.startswith(ring.segment_prefix("blue-1")))
        self.assertFalse(name.startswith(ring.segment_prefix("blue")))
        for other in ("taba-agent.x", "taba..0011223344556677", "taba.a.00", "psm_1234", "taba.a.0011223344556677.x"):
            self.assertIsNone(ring.segment_agent(other))
