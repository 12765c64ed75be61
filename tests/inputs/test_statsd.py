"""StatsD and DogStatsD: what lines mean, and that nothing that comes in does harm."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import MAX_NOTE
from taba.desk import COUNTS, NOT_UNDERSTOOD
from taba.inputs import statsd
from taba.inputs.notes import Allowance, Checks
from taba.inputs.statsd import MAX_LINE_BYTES, MAX_REMEMBERED_BYTES, Readers

Event = tuple[str, str, str, Any, float | None]


class Heard:
    """Readers whose Tabs write down what is recorded."""

    def __init__(self, **bounds: int) -> None:
        self.events: list[Event] = []
        self.units: dict[str, str] = {}
        self.notes: list[tuple[str, float | None]] = []
        self.readers = Readers(self._tab, lambda text, time: self.notes.append((text, time)), **bounds)

    def _tab(self, origin: str, name: str, type: str, unit: str) -> statsd.RecordEvent:
        self.units[name] = unit
        return lambda value, time: self.events.append((origin, name, type, value, time))

    def take(self, content: bytes, origin: str = "a") -> None:
        for record, value, time in self.readers.reader(origin).read(content):
            record(value, time)

    def counted(self) -> dict[str, int]:
        return {name: count for name, count in zip(COUNTS, self.readers.counts, strict=True) if count}


def read(content: bytes) -> list[tuple[Any, ...]]:
    """(name, Type, value) or (name, Type, value, time) of what a packet says."""
    heard = Heard()
    heard.take(content)
    return [event[1:4] if event[4] is None else event[1:] for event in heard.events]


def refused(content: bytes) -> dict[str, int]:
    heard = Heard()
    heard.take(content)
    return {reason: count for reason, count in heard.counted().items() if reason not in ("lines", "events")}


class Meaning(SynchronousTestCase):
    def test_counters_are_divided_by_their_rate(self) -> None:
        self.assertEqual(read(b"a:1|c\na:2.5|c|@0.5\na:-1|c\na:3|c|@1"), [("a", "CounterGroup", value) for value in (1.0, 5.0, -1.0, 3.0)])

    def test_times_histograms_and_distributions_are_percentiles_and_times_are_in_seconds(self) -> None:
        heard = Heard()
        heard.take(b"t:250|ms\nh:250|h\nd:2.5e2|d")
        self.assertEqual(
            [event[1:4] for event in heard.events], [(name, "PercentileGroup", 250 / by) for name, by in (("t", 1000), ("h", 1), ("d", 1))]
        )
        self.assertEqual(heard.units, {"t": "s", "h": "", "d": ""})

    def test_of_a_sampled_value_the_times_add_up_to_what_the_rate_says(self) -> None:
        values = [value for _, _, value in read(b"t:1|h|@0.3\n" * 300)]
        times = [value[1] if isinstance(value, list) else 1 for value in values]
        self.assertEqual(set(times), {3, 4})
        self.assertAlmostEqual(sum(times), 1000, delta=1)
        self.assertEqual(read(b"t:7|h|@0.9"), [("t", "PercentileGroup", 7.0)])

    def test_the_part_is_each_tabs_own(self) -> None:
        self.assertEqual([value for _, _, value in read(b"t:1|h|@0.4\nu:1|h|@0.4\nt:1|h|@0.4")], [[1.0, 2], [1.0, 2], [1.0, 3]])

    def test_a_gauge_goes_on_from_its_last_value_of_the_same_origin(self) -> None:
        heard = Heard()
        heard.take(b"g:10|g\ng:+4|g\ng:-20|g")
        heard.take(b"g:+1|g", "b")
        self.assertEqual([(origin, value) for origin, _, _, value, _ in heard.events], [("a", 10.0), ("a", 14.0), ("a", -6.0), ("b", 1.0)])
        self.assertEqual(heard.counted()["gauges_from_zero"], 1)

    def test_sets_count_texts_whatever_they_are(self) -> None:
        self.assertEqual(read("s:765|s\ns:é:1|s\ns:765|s".encode()), [("s", "Cardinality", text) for text in ("765", "é:1", "765")])

    def test_several_values_are_several_events(self) -> None:
        self.assertEqual([value for _, _, value in read(b"t:1:2.5:-3|h|@0.5")], [[1.0, 2], [2.5, 2], [-3.0, 2]])
        self.assertEqual([value for _, _, value in read(b"g:1:+2:7|g")], [1.0, 3.0, 7.0])

    def test_tags_are_labels_in_any_order_and_one_without_a_value_is_true(self) -> None:
        name = 'a{env="x:y",urgent="true"}'
        self.assertEqual({event[0] for event in read(b"a:1|c|#env:x:y,urgent\na:1|c|#urgent,env:x:y\na:1|c|@1|#,urgent,,env:x:y")}, {name})
        self.assertEqual(read(b"a:1|c|#k:b,k:a")[0][0], 'a{k="a,b"}')

    def test_seventeen_tags_are_one_too_many(self) -> None:
        sixteen = b"a:1|c|#" + b",".join(b"k%02d:v" % number for number in range(16))
        self.assertEqual(refused(sixteen), {})
        self.assertEqual(refused(sixteen + b",k16:v"), {"tags_left_out": 1})
        self.assertEqual(read(sixteen + b",k16:v"), read(sixteen))

    def test_events_say_what_they_are_of_in_one_line_that_can_be_printed(self) -> None:
        heard = Heard()
        for line, expected in (
            (b"_e{4,10}:a|b:|text\\nmore|d:17|p:low|t:error|h:web1|#k:v,u", ("a|b:: text more (error, host:web1, k:v, u)", 17.0)),
            ("_e{4,3}:größe|ä".encode(), None),
            ("_e{7,2}:größe|ä".encode(), ("größe: ä", None)),
            ("_e{5,1}:größe|ä".encode(), ("größe: ä", None)),  # characters, as some count
            (b"_e{1,0}:a|", ("a", None)),
            (b"_e{3,2}:\x1b[m|\x00\x07", ("[m", None)),
            ("_e{3,3}:\u202e|\u202e".encode(), None),
            (b"_e{0,1}:|b", None), (b"_e{2,1}:a|b", None), (b"_e{1,2}:a|b", None), (b"_e{1,1}:a|bc", None), (b"_e{1}:a", None),
            (b"_e{1,1}:a|b|d:x", None), (b"_e{1,1}:a|b|d:-1", None), (b"_e{1,1}:\xff|b", None), (b"_e{1,1}:", None),
            (b"_e{9999999,1}:a|b", None),
        ):  # fmt: skip
            heard.take(line)
            self.assertEqual(heard.notes.pop() if heard.notes else None, expected, line)
        self.assertEqual(heard.counted(), {"lines": 17, "bad_line": 9, "bad_time": 2, "not_utf8": 1, "event": 5})

    def test_a_service_check_is_told_where_it_says_another_thing_and_one_that_says_nothing_is_none(self) -> None:
        heard = Heard()
        for line in (b"_sc|disk", b"_sc||0", b"_sc|disk|4", b"_sc|disk|00", b"_sc|disk|", b"_sc|disk|0|d:soon"):
            heard.take(line)
        self.assertEqual((heard.notes, heard.counted()), ([], {"lines": 6, "bad_line": 5, "bad_time": 1}))
        for line, origin in (
            (b"_sc|disk|0|#a,b", "a"), (b"_sc|disk|0|#b,a", "a"), (b"_sc|disk|0|#b,a", "b"), (b"_sc|disk|1|#a,b|m:a|b|m:c", "a"),
            (b"_sc|disk|0|h:other|#a,b", "a"), (b"_sc|disk|0|#a,b", "a"), (b"_sc|disk|3|#a,b", "a"),
        ):  # fmt: skip
            heard.take(line, origin)
        told = ["ok (a, b)", "ok (b, a)", "warning: a|b|m:c (a, b)", "ok (host:other, a, b)", "ok (a, b)", "unknown (a, b)"]
        self.assertEqual([text for text, _ in heard.notes], [f"disk is {text}" for text in told])

    def test_a_note_is_as_long_as_a_server_takes_it_and_no_longer(self) -> None:
        heard = Heard()
        for length in (MAX_NOTE, MAX_NOTE + 1):
            heard.take(b"_e{%d,0}:%s|" % (length, b"x" * length))
        self.assertEqual([text for text, _ in heard.notes], ["x" * MAX_NOTE, "x" * (MAX_NOTE - 1) + "…"])

    def test_of_checks_so_many_are_remembered(self) -> None:
        self.patch(Checks, "MOST", 2)
        checks = Checks()
        said = [checks.is_new((name,), "ok") for name in ("a", "b", "a", "c", "c", "a")]
        self.assertEqual(said, [True, True, False, True, False, True])

    def test_some_notes_go_on_at_once_and_then_one_in_a_while(self) -> None:
        allowance = Allowance(0.0)
        self.assertEqual([allowance.take(0.0) for _ in range(Allowance.AT_ONCE + 1)], [True] * Allowance.AT_ONCE + [False])
        self.assertEqual([allowance.take(now * Allowance.EVERY) for now in (0.5, 1.0, 1.5, 2.0)], [False, True, False, True])
        self.assertTrue(all(allowance.take(1e9) for _ in range(Allowance.AT_ONCE)) and not allowance.take(1e9))

    def test_a_time_is_the_events(self) -> None:
        self.assertEqual(
            read(b"a:1|c|T1656581400\ng:2|g|#x:1|T7"), [("a", "CounterGroup", 1.0, 1656581400.0), ('g{x="1"}', "Gauge", 2.0, 7.0)]
        )

    def test_fields_that_nobody_knows_are_passed_over(self) -> None:
        self.assertEqual(read(b"a:1|c|#x:1|c:ci-0123|e:it-false,cn-web|card:low"), [('a{x="1"}', "CounterGroup", 1.0)])

    def test_events_and_service_checks_are_counted(self) -> None:
        heard = Heard()
        heard.take(b"_e{5,4}:title|text|#a:b\n_sc|disk|0|m:fine\na:1|c\n_sc|disk|0|m:fine\n_sc|disk|2|d:17|h:web1|#a:b|m:full")
        self.assertEqual(
            heard.notes, [("title: text (a:b)", None), ("disk is ok: fine", None), ("disk is critical: full (host:web1, a:b)", 17.0)]
        )
        self.assertEqual(heard.counted(), {"lines": 5, "events": 1, "event": 1, "service_check": 3})

    def test_lines_may_end_as_they_do_on_windows_and_be_empty(self) -> None:
        self.assertEqual(read(b"\r\na:1|c\r\n\n\na:2|c|#k:v\r\n"), [("a", "CounterGroup", 1.0), ('a{k="v"}', "CounterGroup", 2.0)])
        self.assertEqual(refused(b"\n\n\r\n"), {})

    def test_what_public_clients_send_is_understood(self) -> None:
        for line in (
            b"gunicorn.request.status.200:1|c|@1.0",  # gunicorn
            b"gunicorn.requests:1|c|#env:prod",
            b"gunicorn.workers:2|g",
            b"stats.timed:0.320000|ms",  # statsd
            b"stats.users:u1|s",
            b"datadog.dogstatsd.client.metrics:5|c|#client:py,client_version:0.52.1,client_transport:udp",  # datadog
            b"my_metric:1|c|@0.25|#a:b|c:ci-f76",
            b"hot.shots:5.5|d|@0.5|#bar,env:x|T1234",  # hot-shots
        ):
            self.assertEqual((refused(line), len(read(line))), ({}, 1), line)


class Names(SynchronousTestCase):
    def test_what_tabs_do_not_take_becomes_a_line_and_is_counted_once(self) -> None:
        self.assertEqual(
            [name for name, _, _ in read("app requests é:1|c\n_x:1|c\ntaba.x:1|c".encode())],
            ["app_requests__", "statsd._x", "statsd.taba.x"],
        )
        self.assertEqual(refused(b"a b:1|c\n" * 9), {"names_changed": 1})

    def test_keys_that_labels_do_not_take_are_changed(self) -> None:
        self.assertEqual(
            read(b"a:1|c|#le:1,0day:2,__x:3,a-b:4,quantile:5,__1:6")[0][0], 'a{_0day="2",_1="6",_x="3",a_b="4",le_="1",quantile_="5"}'
        )
        self.assertEqual(refused(b"a:1|c|#:x,__:y"), {"tags_left_out": 2})

    def test_a_name_of_two_hundred_characters_is_taken_and_one_past_it_is_not(self) -> None:
        self.assertEqual(read(b"x" * 200 + b":1|c"), [("x" * 200, "CounterGroup", 1.0)])
        self.assertEqual(refused(b"x" * 201 + b":1|c"), {"bad_name": 1})
        self.assertEqual(refused(b"_" * 196 + b":1|c"), {"bad_name": 1})

    def test_a_value_may_hold_anything_and_be_long(self) -> None:
        self.assertEqual(read(b'a:1|c|#k:"\\\0')[0][0], 'a{k="\\"\\\\\N{REPLACEMENT CHARACTER}"}')
        self.assertIn("…", read(b"a:1|c|#k:" + b"v" * 201)[0][0])


class Refused(SynchronousTestCase):
    def test_what_is_not_understood_is_counted_under_its_reason(self) -> None:
        for line, reason in (
            (b"a", "bad_line"),
            (b"a:1", "bad_line"),
            (b":1|c", "bad_line"),
            (b"a|c", "bad_line"),
            (b"a:1|", "bad_line"),
            (b"a:1|x", "bad_type"),
            (b"a:1|c:2|c", "bad_type"),
            (b"a:|c", "bad_value"),
            (b"a:x|c", "bad_value"),
            (b"a:1_0|c", "bad_value"),
            (b"a: 1|c", "bad_value"),
            (b"a:nan|g", "bad_value"),
            (b"a:inf|g", "bad_value"),
            (b"a:1e999|c", "bad_value"),
            (b"a:" + b"9" * 400 + b"|c", "bad_value"),
            (b"g:1e308:+1e308|g", "bad_value"),
            (b"a:1|c|@0", "bad_rate"),
            (b"a:1|c|@1.1", "bad_rate"),
            (b"a:1|c|@-1", "bad_rate"),
            (b"a:1|c|@nan", "bad_rate"),
            (b"a:1|c|@", "bad_rate"),
            (b"a:1|c|@1e-10", "bad_rate"),
            (b"a:1|c|T", "bad_time"),
            (b"a:1|c|T-1", "bad_time"),
            (b"a:1|c|T1099511627777", "bad_time"),
            (b"\xff:1|c", "not_utf8"),
            (b"a:1|c|#\xff", "not_utf8"),
            (b"a:\xff|s", "not_utf8"),
        ):
            self.assertEqual(refused(line), {reason: 1}, line)

    def test_a_bad_line_harms_no_other(self) -> None:
        self.assertEqual(read(b"a:1|c\nrubbish\na:2|c|@x\na:3|c"), [("a", "CounterGroup", 1.0), ("a", "CounterGroup", 3.0)])

    def test_a_bad_value_harms_no_other_in_its_line(self) -> None:
        self.assertEqual([value for _, _, value in read(b"a:1:x:3|h")], [1.0, 3.0])

    def test_a_line_may_be_so_long_and_no_longer(self) -> None:
        def line(length: int, values: bytes = b"1") -> bytes:
            return b"a:" + values + b"|c|#k:" + b"v" * (length - len(values) - 8)

        self.assertEqual(refused(line(MAX_LINE_BYTES)), {})
        self.assertEqual(refused(line(MAX_LINE_BYTES + 1)), {"long_line": 1})
        short = line(64)
        self.assertEqual(refused(short + b"\n" + short.replace(b":1|", b":" + b"1:" * MAX_LINE_BYTES + b"1|")), {"long_line": 1})

    def test_an_example_is_kept_and_it_is_short(self) -> None:
        heard = Heard()
        heard.take(b"good:1|c\n" + b"x" * 5000)
        self.assertEqual(heard.readers.example, b"x" * statsd.EXAMPLE_BYTES)


class Bounds(SynchronousTestCase):
    def test_what_is_remembered_is_bounded_and_forgetting_changes_nothing(self) -> None:
        self.patch(statsd, "MAX_REMEMBERED", 3)
        heard = Heard()
        for number in range(10):
            heard.take(b"g%d:1|g" % number)
            self.assertLessEqual(len(heard.readers.reader("a").known), 3)
        heard.take(b"g0:+1|g")
        self.assertEqual(heard.events[-1][3], 2.0)

    def test_long_names_and_times_are_not_remembered(self) -> None:
        heard = Heard()
        heard.take(b"a:1|c|T1\na:1|c|#k:" + b"v" * MAX_REMEMBERED_BYTES)
        self.assertEqual(heard.readers.reader("a").known, {})

    def test_with_as_many_tabs_as_there_may_be_the_room_is_full_until_all_begins_anew(self) -> None:
        heard = Heard(max_tabs=3)
        heard.take(b"a:1|c\nb:1|c|#x:1\nc:1|h|@0.4")
        self.assertTrue(heard.readers.is_full)
        heard.readers.drop_all()
        self.assertFalse(heard.readers.is_full)
        self.assertEqual((heard.counted()["parts_forgotten"], heard.readers.remembered), (1, 0))
        heard.take(b"c:1|h|@0.4")
        self.assertEqual(heard.events[-1][3], [1.0, 2])

    def test_with_as_long_names_as_there_may_be_it_is_full_too(self) -> None:
        self.patch(statsd, "MAX_NAMES", 10)
        heard = Heard()
        heard.take(b"aaaa:1|c\naaaa:2|c\nbbbbb:1|c")
        self.assertFalse(heard.readers.is_full)
        heard.take(b"c:1|c", "b")
        self.assertTrue(heard.readers.is_full)
        heard.readers.drop("b")
        self.assertFalse(heard.readers.is_full)
        heard.readers.drop_all()
        self.assertEqual((heard.readers.tabs, heard.readers.characters), (0, 0))

    def test_what_is_read_costs_in_proportion(self) -> None:
        def calls(content: bytes) -> int:
            made = 0

            def count(*_: Any) -> None:
                nonlocal made
                made += 1

            reader = Heard().readers.reader("a")
            sys.setprofile(count)
            try:
                reader.read(content)
            finally:
                sys.setprofile(None)
            return made

        for shape in (b"a:1|c\n", b"1:", b"|", b"a:1:1:1|h\n", b",", b"k:v,", b"\n", b"\r\n", b"#@T", b"x"):
            for before in (b"", b"a:", b"a:1|c|#"):
                some, more = (calls(before + shape * (length // len(shape))) for length in (2000, 8000))
                self.assertLessEqual(more, 5 * some + 100, (before, shape))


LINES = st.one_of(
    st.builds(
        lambda name, value, kind, more: f"{name}:{value}|{kind}{more}".encode(),
        st.sampled_from("abc"),
        st.one_of(st.integers(-5, 99).map(str), st.sampled_from(["+2", "-3", "1:2:+3", "1.5", "x", ""])),
        st.sampled_from(["c", "ms", "h", "d", "g", "s", "z"]),
        st.sampled_from(["", "|@0.3", "|#k:v", "|@0.7|#u,k:v|T12", "|@9", "|c:id"]),
    ),
    st.binary(max_size=40).map(lambda content: content.replace(b"\n", b"")),
)


class Invariants(SynchronousTestCase):
    @given(st.binary(max_size=400))
    def test_no_bytes_raise_and_each_line_is_in_the_books(self, content: bytes) -> None:
        heard = Heard()
        heard.take(content)
        counts = Counter(heard.counted())
        self.assertEqual(counts["events"], len(heard.events))
        lines = [line for line in content.replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n") if line]
        self.assertEqual(counts["lines"], len(lines))
        told = sum(counts[reason] for reason in (*NOT_UNDERSTOOD, "event", "service_check"))
        self.assertGreaterEqual(counts["events"] + told, counts["lines"])

    @given(st.lists(LINES, max_size=20), st.lists(st.integers(1, 5), max_size=20))
    def test_how_lines_are_packed_changes_nothing(self, lines: list[bytes], sizes: list[int]) -> None:
        together, apart, otherwise = Heard(), Heard(), Heard()
        together.take(b"\n".join(lines))
        for line in lines:
            apart.take(line)
        rest = list(lines)
        for size in [*sizes, *[1] * len(lines)]:
            otherwise.take(b"\n".join(rest[:size]) + b"\n")
            rest = rest[size:]
        self.assertEqual((together.events, together.notes), (apart.events, apart.notes))
        self.assertEqual(together.events, otherwise.events)
        self.assertEqual(together.counted(), apart.counted())
