from __future__ import annotations

import json
import math
import struct
from itertools import pairwise
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import events
from taba.batch import KEY_BYTES, Column, encode_batch
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS
from taba.names import bucket_of
from taba.steps import finish
from tests.examples import examples


def post(*found: Any) -> events.Posted:
    return read({"client": "web/1", "events": list(found)})


def read(request: Any, now: float = 100.0, buckets: int = 512) -> events.Posted:
    return events.read_events(json.dumps(request).replace("Infinity", "1e999").encode(), now, buckets)


class PostedEvents(SynchronousTestCase):
    def test_events_of_one_tab_become_one_column_in_order(self) -> None:
        posted = post({"tab": "a", "type": "T", "value": 1}, {"tab": "a", "type": "T", "value": 2.5, "time": 50})
        self.assertEqual(
            posted.lots, {bucket_of("a", 512): [[Column("web/1", "a", "T", struct.pack("<2d", 100, 50), struct.pack("<2d", 1, 2.5))]]}
        )

    def test_labels_make_the_canonical_name(self) -> None:
        posted = post(
            {"tab": "a", "labels": {"y": "2", "x": "1"}, "type": "T", "value": 1}, {"tab": 'a{x="1",y="2"}', "type": "T", "value": 1}
        )
        ((columns,),) = posted.lots.values()
        self.assertEqual([(column.tab, column.events) for column in columns], [('a{x="1",y="2"}', 2)])

    def test_values_that_no_float_holds_travel_as_a_list(self) -> None:
        for value in [True, None, "x", [1], {"a": 1}, 2**53 + 1]:
            ((columns,),) = post({"tab": "a", "type": "T", "value": 1}, {"tab": "a", "type": "T", "value": value}).lots.values()
            self.assertEqual(columns[0].values, [1, value])

    def test_a_bad_event_is_rejected_by_its_place_and_the_others_stand(self) -> None:
        good = {"tab": "a", "type": "T", "value": 1}
        bad: list[Any] = [
            5,
            {"tab": "a", "type": "T"},
            {**good, "extra": 1},
            {**good, "tab": "a b"},
            {**good, "tab": None},
            {**good, "type": "1"},
            {**good, "time": "now"},
            {**good, "time": True},
            {**good, "time": -1},
            {**good, "time": math.inf},
            {**good, "labels": {"1a": "x"}},
            {**good, "labels": [1]},
            {**good, "labels": []},
            {**good, "labels": ""},
            {**good, "labels": 0},
            {**good, "labels": False},
            {**good, "tab": 'a{x="1"}', "labels": {"y": "2"}},
            {**good, "value": 2**70},
            {**good, "value": "x" * 40_000},
        ]
        posted = post(good, *bad, good)
        self.assertEqual(posted.accepted, 2)
        self.assertEqual([rejection.place for rejection in posted.rejected], list(range(1, len(bad) + 1)))

    def test_a_request_that_is_none_is_refused(self) -> None:
        posts: list[Any] = [
            None,
            [],
            {},
            {"client": "a b", "events": []},
            {"client": "a", "events": {}},
            {"client": "a"},
            {"client": "a", "events": [], "x": 1},
        ]
        for bad in posts:
            self.assertRaises(ValueError, read, bad)
        most = [{"tab": "a", "type": "T", "value": 1}] * events.MAX_POSTED_EVENTS
        self.assertEqual(post(*most).accepted, events.MAX_POSTED_EVENTS)
        self.assertRaises(ValueError, post, *most, most[0])

    def test_the_largest_request_is_cut_into_batches_by_one_rule_in_the_order_of_its_events(self) -> None:
        for value, tabs, most in [("x" * 400, 1, events.LOT_BYTES), ("x" * 32_000, 3, events.LOT_BYTES), (1, 5000, 10**9)]:
            found = [{"tab": f"t{n % tabs}", "type": "T", "value": value} for n in range(8000 if tabs != 3 else 200)]
            posted = read({"client": "web/1", "events": found}, 100.0, 1)
            ((bucket, lots),) = posted.lots.items()
            self.assertGreater(len(lots), 1)
            self.assertEqual(sum(column.events for lot in lots for column in lot), posted.accepted)
            for lot in lots:
                content = encode_batch(bytes(16), bucket, 1, lot)
                self.assertLessEqual(len(content), min(MAX_BATCH_BYTES, most + 4096))
                self.assertLessEqual(len(lot), MAX_BATCH_COLUMNS)
            again = read({"client": "web/1", "events": found}, 200.0, 1)
            self.assertEqual(
                [[column.values for column in lot] for lot in lots], [[column.values for column in lot] for lot in again.lots[bucket]]
            )

    def test_a_value_nested_too_deeply_is_rejected_and_its_neighbours_are_accepted(self) -> None:
        def nested(depth: int) -> object:
            return 1 if not depth else {"a": nested(depth - 1)}

        posted = post(*({"tab": "a", "type": "T", "value": nested(depth)} for depth in (32, 33, 500)))
        self.assertEqual(posted.accepted, 1)
        self.assertEqual([rejection.place for rejection in posted.rejected], [1, 2])
        self.assertIn("at most 32 deep", posted.rejected[0].reason)

    def test_what_is_nested_deeper_than_a_decoder_can_spoils_only_itself(self) -> None:
        good = '{"tab": "a", "type": "T", "value": 1}'
        for deep in ("[" * 5000 + "]" * 5000, '{"a":' * 20_000 + "1" + "}" * 20_000, "[" * 130_000 + "]" * 130_000):
            for event in (
                deep,
                '{"tab": "a", "type": "]\\"}", "value": ' + deep + "}",
                '{"tab": "a", "labels": ' + deep + ', "type": "T", "value": 1}',
            ):
                for is_digested in (False, True):
                    content = f'{{"client": "web/1", "events": [{good}, {event}, {good}]}}'.encode()
                    posted = finish(events.reading(content, 100.0, 512, is_digested))
                    self.assertEqual((posted.accepted, [rejection.place for rejection in posted.rejected]), (2, [1]))
                    self.assertIn("at most 32 deep", posted.rejected[0].reason)

    @given(st.text(alphabet='"\\[]{}a\n', max_size=40))
    @examples(200)
    def test_texts_and_brackets_are_found_as_a_scanner_of_single_characters_finds_them(self, text: str) -> None:
        expected: list[tuple[int, int]] = []
        place = 0
        while place < len(text):
            end = place + 1
            if text[place] == '"':
                while end < len(text) and text[end] != '"':
                    end += 2 if text[end] == "\\" else 1
                end = min(end + 1, len(text))
            if text[place] in '"[]{}':
                expected.append((place, end))
            place = end
        self.assertEqual([found.span() for found in events._NESTS.finditer(text)], expected)

    def test_as_much_of_what_no_decoder_takes_is_passed_over_as_the_bound_says_and_no_more_is_walked(self) -> None:
        deep = "[" * 50_000 + "]" * 50_000
        self.patch(events, "MAX_DEEP_CHARACTERS", 3 * len(deep))
        good = '{"tab": "a", "type": "T", "value": 1}'
        posted = events.read_events(f'{{"client":"a","events":[{good},{deep},{deep},{deep},{good}]}}'.encode(), 100.0, 512)
        self.assertEqual((posted.accepted, [one[0] for one in posted.rejected]), (2, [1, 2, 3]))
        with self.assertRaisesRegex(ValueError, "those that nest deeper than can be read take at most 300000 characters"):
            events.read_events(f'{{"client":"a","events":[{deep},{deep},{deep},{deep}]}}'.encode(), 100.0, 512)

    def test_no_character_behind_a_deep_nest_is_looked_at_twice_and_others_have_their_turns(self) -> None:
        self.patch(events, "SLICE_NESTS", 20_000)
        for deep in (
            "[" * 200_000 + '"' + '\\"' * 3000,  # a text that does not end, and as many beginnings of one
            "[" * 200_000 + '"' * 3001,
            "[" * 200_000 + '"' + "\\" * 3001,
            "[" * 200_000 + '"]",' * 1000 + '"',
            '{"a":[' * 40_000,
            "[" * 200_000 + '"[{' * 1000,
        ):
            found = list(events._NESTS.finditer(deep))
            for one, other in pairwise(found[-10_000:]):  # between two that are found stands no beginning that was tried in vain
                self.assertNotIn('"', deep[one.end() : other.start()])
            self.assertNotIn('"', deep[found[-1].end() :])
            turns = 0
            with self.assertRaises(ValueError):
                for _ in events.reading(f'{{"client":"a","events":[{deep}'.encode(), 100.0, 512, True):
                    turns += 1
            self.assertGreaterEqual(turns, len(found) // events.SLICE_NESTS)

    def test_such_a_request_has_a_digest_of_its_own(self) -> None:
        digests = set()
        for depth in (400, 900, 950, 990, 5000, 5001):
            content = b'{"client": "web/1", "events": [{"tab": "a", "type": "T", "value": ' + b"[" * depth + b"]" * depth + b"}]}"
            digests.add(events.read_events(content, 100.0, 512).digest)
        self.assertEqual(len(digests), 6)

    def test_what_does_not_end_or_stands_elsewhere_is_refused_as_a_whole(self) -> None:
        for content in (
            '{"client": "web/1", "events": [' + "[" * 5000 + "]" * 4999 + "]}",
            '{"client": "web/1", "events": [' + "[" * 5000 + ']"',
            '{"client": ' + "[" * 5000 + "]" * 5000 + ', "events": []}',
            '{"client": ' + "[" * 900 + "]" * 900 + ', "events": []}',
            '{"client": "' + "a" * 5000 + '", "events": []}',
            '{"client": "web/1", "events": [' + "[" * 200_000 + "]" * 200_000 + "]}",
            "[" * 5000 + "]" * 5000,
        ):
            with self.assertRaises(ValueError) as raised:
                events.read_events(content.encode(), 100.0, 512)
            self.assertLess(len(str(raised.exception)), 300)

    def test_the_largest_events_are_read_however_many_bytes_a_character_takes(self) -> None:
        """What a window must hold before a value is counted in characters, what comes in bytes."""
        for character in ("x", "\u00e9", "\u20ac", "\U0001f600"):
            value = character * (32_000 // len(character.encode()))
            request = {"client": "web/1", "events": [{"tab": "a", "type": "T", "value": value}] * 60}
            for begin in (b"", b" " * 100_000):
                content = begin + json.dumps(request, ensure_ascii=False).encode()
                self.assertEqual(events.read_events(content, 100.0, 512).accepted, 60)

    def test_space_in_a_row_is_taken_up_to_its_bound(self) -> None:
        good = b'{"client": "web/1", "events": [%s{"tab": "a", "type": "T", "value": 1}]}'
        for most in (events.MAX_SPACE_CHARACTERS, 3 * events.MAX_SPACE_CHARACTERS):
            content = good % (b" " * most)
            if most == events.MAX_SPACE_CHARACTERS:
                self.assertEqual(events.read_events(content, 100.0, 512).accepted, 1)
                content = good % (b" " * (most + 1))
            with self.assertRaisesRegex(ValueError, "of space in a row"):
                events.read_events(content, 100.0, 512)

    def test_others_have_their_turn_after_some_events_and_after_some_bytes(self) -> None:
        reading = mock.Mock(side_effect=events._read_event)
        self.patch(events, "_read_event", reading)
        small, large = {"tab": "a", "type": "T", "value": 1}, {"tab": "a", "type": "T", "value": "x" * 30_000}
        for event, count, most in ((small, 1000, events.SLICE_EVENTS), (large, 8, 3), (5, 1000, events.SLICE_EVENTS)):
            content = json.dumps({"client": "web/1", "events": [event] * count}).encode()
            before = reading.call_count
            for _ in events.reading(content, 100.0, 512, True):
                self.assertLessEqual(reading.call_count - before, most)
                before = reading.call_count

    def test_a_key_belongs_to_its_client_and_its_request_is_known_however_it_is_written(self) -> None:
        request = {"client": "a", "events": [{"tab": "x", "type": "Gauge", "value": 1}]}
        digest = read(request).digest
        again = events.read_events(json.dumps(dict(reversed(request.items())), indent=2).encode(), 1.0, 8).digest
        part = events.key_part("a", "k", digest)
        self.assertEqual((len(part.encode()), events.key_part("a", "k", again)), (KEY_BYTES, part))
        self.assertEqual(part, part.decode(part.encode()))
        for client, key, other in (("b", "k", request), ("a", "l", request), ("a", "k", {**request, "events": []})):
            self.assertNotEqual(events.key_part(client, key, read(other).digest), part)
        for bad in ["", "x" * 256]:
            self.assertRaises(ValueError, events.key_part, "a", bad, digest)
