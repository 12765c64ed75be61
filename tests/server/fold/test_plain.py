"""What is decided at once of ordinary buckets is what each of them alone would have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, cast
from unittest import mock

import numpy
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import APPLIED, GAP, RING_ENDED, RING_GONE, AtEdge, Column, encode_batch, reading_batch
from taba.handlers import counter_group
from taba.handlers.counter_group import JOURNAL_SLOTS
from taba.handlers.lookup import find_handlers
from taba.server import keys
from taba.server.fold import plain, together
from taba.server.fold.cycle import Outcome, Reads, WaitingBatch
from taba.server.fold.marks import Mark, encode_mark
from taba.server.fold.plain import fold_plain
from taba.server.fold.together import Alone, Together
from taba.server.work.bench import Bench
from taba.server.work.pace import Pause
from taba.steps import finish

from ..samples import AGE, NONCE, column, tab_in

BUCKETS = 8
NOW = 1_000_000.0
NOBODY: Any = None
STREAM = bytes([1]) * 16
Hashes = dict[tuple[bytes, bytes], bytes]


def shown(outcome: Outcome) -> Outcome:
    """The same, and what may be in another order in one: times, and fields of one command."""
    commands = [
        (*command[:2], *sorted(zip(command[2::2], command[3::2], strict=True))) if command[0] == b"HSET" else command
        for command in outcome.commands
    ]
    times = b"".join(outcome.times)
    return outcome._replace(commands=commands, times=sorted(times[at : at + 8] for at in range(0, len(times), 8)))  # type: ignore[arg-type]


class PlainTests(SynchronousTestCase):
    def setUp(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        self.bench = Bench(find_handlers(), NOBODY)
        self.tabs = [tab_in(bucket, buckets=BUCKETS) for bucket in range(BUCKETS)]
        self.hashes: Hashes = {(keys.marks(bucket), STREAM): encode_mark(Mark(NONCE, 0, AGE)) for bucket in range(BUCKETS)}

    def waiting(self, number: int, now: float, events: int = 1, type: str = "CounterGroup") -> list[WaitingBatch]:
        found = []
        for bucket, tab in enumerate(self.tabs):
            times = [now - 5.0 * ago for ago in reversed(range(events))]
            columns = [column(tab, type, [float(client)] * events, f"web/{client}", times) for client in range(3)]
            content = encode_batch(STREAM, bucket, number, columns)
            found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
        return found

    def mixed(self, number: int, now: float, stream: bytes = STREAM) -> list[WaitingBatch]:
        """A batch for each bucket, of two Types and several Clients; another number has other States."""
        found = []
        for bucket in range(BUCKETS):
            columns = [
                column(
                    tab_in(bucket, place, BUCKETS), type, [1.0 + client] * count, f"web/{client}", [now - 5 * ago for ago in range(count)]
                )
                for place, (type, count) in enumerate((("CounterGroup", 1), ("PercentileGroup", 5), ("CounterGroup", 5)))
                for client in range(number % 3, 3)
            ]
            content = encode_batch(stream, bucket, number, columns)
            found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
        return found

    def answer(self, command: tuple[bytes, ...]) -> Any:
        name, key, *fields = command
        if name == b"LRANGE":
            return []
        return [self.hashes.get((key, field)) for field in fields] if name in (b"HMGET", b"SMISMEMBER") else 0

    def fold(self, waiting: Sequence[WaitingBatch], now: float) -> dict[int, Outcome]:
        by_bucket: dict[int, list[WaitingBatch]] = {}
        for item in waiting:
            by_bucket.setdefault(item.batch.bucket, []).append(item)
        cycles = Together(by_bucket, BUCKETS, self.bench)
        reads: Mapping[int, Sequence[Any]] = cycles.reads
        steps: Any = None
        try:
            while True:
                replies = {bucket: [self.answer(command) for command in its] for bucket, its in reads.items()}
                if steps is None:
                    steps = cycles.fold(replies, now, AGE)
                    need = next(steps)
                else:
                    need = steps.send(replies)
                while isinstance(need, Pause):
                    need = steps.send(None)
                reads = need
        except StopIteration as stop:
            found: dict[int, Outcome] = stop.value
            return found

    def write(self, outcomes: Mapping[int, Outcome]) -> None:
        for outcome in outcomes.values():
            for name, key, *rest in outcome.commands:
                if name == b"HSET":
                    self.hashes.update({(key, field): content for field, content in zip(rest[::2], rest[1::2], strict=True)})

    def both(self, waiting: Sequence[WaitingBatch], now: float) -> tuple[dict[int, Outcome], int]:
        """The Outcomes, the same by both ways; and how many buckets were decided at once."""
        at_once = 0

        def counting(*arguments: Any) -> Any:
            nonlocal at_once
            found = yield from fold_plain(*arguments)
            at_once += len(found)
            return found

        with mock.patch.object(together, "fold_plain", counting):
            ours = self.fold(waiting, now)
        with mock.patch.object(together, "plan", lambda *_: None):
            theirs = self.fold(waiting, now)
        self.assertEqual(list(ours), list(theirs))
        for bucket, outcome in ours.items():
            self.assertEqual(shown(outcome), shown(theirs[bucket]))
        self.each_alone(waiting, now, {bucket for bucket, outcome in ours.items() if type(outcome) is plain.PlainOutcome})
        return ours, at_once

    def each_alone(self, waiting: Sequence[WaitingBatch], now: float, ordinary: set[int]) -> None:
        """What each bucket comes to by itself is the same by both ways, too; and `ordinary` go the short one."""
        found = set()
        for bucket in dict.fromkeys(item.batch.bucket for item in waiting):
            its = [item for item in waiting if item.batch.bucket == bucket]
            ours, theirs = (self.fold_alone(Alone(bucket, its, BUCKETS, self.bench, plainly), now) for plainly in (True, False))
            self.assertEqual(shown(ours), shown(theirs))
            self.assertIs(type(theirs), Outcome)
            found |= {bucket} if type(ours) is plain.PlainOutcome else set()
        self.assertLessEqual(ordinary, found)

    def fold_alone(self, cycle: Alone, now: float) -> Outcome:
        steps = cycle.fold([self.answer(command) for command in cycle.reads], now, AGE)
        sent: Any = None
        try:
            while True:
                need = steps.send(sent)
                while isinstance(need, Pause):
                    need = steps.send(None)
                assert isinstance(need, Reads)
                sent = [self.answer(command) for command in need.commands]
        except StopIteration as stop:
            found: Outcome = stop.value
            return found

    def made(self) -> None:
        """Have all States there, with journals that are nearly full."""
        self.write(self.both(self.waiting(1, NOW, JOURNAL_SLOTS - 1), NOW)[0])

    def test_new_states_are_not_ordinary_and_those_that_are_there_are(self) -> None:
        outcomes, at_once = self.both(self.waiting(1, NOW), NOW)
        self.assertEqual(at_once, 0)
        self.write(outcomes)
        for number in (2, 3):
            outcomes, at_once = self.both(self.waiting(number, NOW + number, events=number), NOW + number)
            self.assertEqual((at_once, {outcome.folded for outcome in outcomes.values()}), (BUCKETS, {3 * number}))
            self.write(outcomes)

    def test_what_spills_writes_archives(self) -> None:
        self.made()
        now = NOW + 10
        for number in range(2, 30):
            now += 5
            outcomes, at_once = self.both(self.waiting(number, now), now)
            self.assertEqual(at_once, BUCKETS)
            self.write(outcomes)
        archives = [field for key, field in self.hashes if key == keys.states(0) and field.count(b"\0") == 2]
        self.assertEqual(len(archives), 3)

    def test_several_types_batches_and_streams_are_ordinary(self) -> None:
        other = bytes([2]) * 16
        self.hashes.update({(keys.marks(bucket), other): encode_mark(Mark(NONCE, 2, AGE - 1)) for bucket in range(BUCKETS)})
        self.write(self.both(self.mixed(3, NOW, other), NOW)[0])
        now = NOW
        for turn in range(12):
            now += 25
            number = 3 * turn + 1
            waiting = [*self.mixed(number, now), *self.mixed(turn + 4, now + 1, other), *self.mixed(number + 1, now + 2)]
            waiting += self.mixed(number + 2, now + 3)
            outcomes, at_once = self.both(waiting, now + 5)
            self.assertEqual((turn, at_once), (turn, BUCKETS))
            self.assertEqual({len(outcome.verdicts) for outcome in outcomes.values()}, {4})
            self.write(outcomes)
            # what follows a gap is Fold's, and is told apart by it
            spoiled = [item._replace(follows=item.follows + (item.batch.bucket == 1)) for item in self.mixed(turn + 5, now, other)]
            outcomes, at_once = self.both([*spoiled, *self.mixed(number + 3, now)], now + 5)
            self.assertEqual((at_once, [verdict.word for verdict in outcomes[1].verdicts]), (BUCKETS - 1, [GAP, APPLIED]))
        self.assertIn(b"\0001", {field[-2:] for _, field in self.hashes})

    def besides(self, number: int, now: float, seed: int) -> list[WaitingBatch]:
        """A batch for each bucket: arrays, and beside them texts and numbers of Types that fold lists, and States from the edge."""
        found = []
        random = Random(seed)
        for bucket in range(BUCKETS):
            places = {"CounterGroup": 0, "PercentileGroup": 1, "Cardinality": 2, "TopK": 3, "Gauge": 4, "Buffer": 5, "UpDown": 6}
            chosen = list(places) if number == 1 else random.sample(list(places), random.randint(1, len(places)))
            columns = []
            for type in chosen:
                tab = tab_in(bucket, places[type], BUCKETS)
                for client in range(3):
                    if type == "UpDown":
                        columns += self.absolutes(tab, f"web/{client}", number, now, random)
                        continue
                    count = random.randint(1, 40)
                    times = [now - random.random() * 60 for _ in range(count)]
                    values: list[Any] = [random.choice((1.0, 2.5, 40.0)) for _ in times]
                    if type not in ("CounterGroup", "PercentileGroup") and client < 2:
                        values = [random.choice(("a", "b", 7, None, True)) for _ in times]
                    columns.append(column(tab, type, values, f"web/{client}", times))
                    if type in ("CounterGroup", "PercentileGroup") and client == 1 and number > 1:
                        columns[-1] = self.at_edge(columns[-1], times)
            content = encode_batch(STREAM, bucket, number, columns)
            found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
        return found

    def absolutes(self, tab: str, client: str, number: int, now: float, random: Random) -> list[Column]:
        """Of two rings of a Client; one tells again what was told before, or is at its end."""
        rows: list[list[Any]] = [[bytes([2]) * 16, 10 * number, 2.5], [bytes([3]) * 16, 10 * number, 1.0]]
        if random.random() < 0.3:
            rows[1][1] = random.choice((3, RING_ENDED, RING_GONE))
        return [
            column(tab, "UpDown", [row], client, [now - 1])._replace(stands_for=random.choice((0, 3)) if place else 4)
            for place, row in enumerate(rows)
        ]

    def at_edge(self, one: Column, times: list[float]) -> Column:
        """The same as an Agent folds it."""
        handler: Any = self.bench.get(one.type)
        rows, values = numpy.zeros(len(times), numpy.int64), numpy.frombuffer(cast(bytes, one.values), "<f8")
        [dump] = handler.edge_array(rows, numpy.array(times), values, 1)
        first = numpy.array([min(times)], "<f8").tobytes()
        return one._replace(times=first, values=AtEdge(handler.edge, dump, max(times)), stands_for=len(times))

    def test_what_a_bucket_has_beside_arrays_is_ordinary(self) -> None:
        self.write(self.both(self.besides(1, NOW, 0), NOW)[0])
        now = NOW
        for number in range(2, 30):
            now += 40.0
            outcomes, at_once = self.both(self.besides(number, now, number), now)
            self.assertEqual((number, at_once), (number, BUCKETS))
            self.write(outcomes)
        self.assertIn(b"\0001", {field[-2:] for _, field in self.hashes})

    def test_what_cannot_be_folded_beside_arrays_leaves_its_bucket_to_fold(self) -> None:
        self.write(self.both(self.besides(1, NOW, 0), NOW)[0])
        kept = dict(self.hashes)
        tab = {type: tab_in(0, place, BUCKETS) for place, type in enumerate(("CounterGroup", "PercentileGroup", "Cardinality", "TopK"))}
        flying = tab_in(0, 6, BUCKETS)
        edge = self.at_edge(column(tab["CounterGroup"], "CounterGroup", [1.0, 2.0], "web/1", [NOW, NOW]), [NOW, NOW])
        state = cast(AtEdge, edge.values)
        good = column(tab["CounterGroup"], "CounterGroup", [1.0], "web/0", [NOW])
        cases: dict[str, tuple[list[Column], dict[str, int]]] = {
            "another Type": ([column(tab["TopK"], "Cardinality", ["a"], "web/0", [NOW])], {"type_conflict": 1}),
            "two Types": ([column(tab["CounterGroup"], "Cardinality", ["a"], "web/0", [NOW])], {"type_conflict": 1}),
            "a time that is none": ([column(tab["Cardinality"], "Cardinality", ["a", "b"], "web/0", [NOW, -1.0])], {"bad_time": 1}),
            "lists in a list": ([column(tab["Cardinality"], "Cardinality", [[1], "b"], "web/0", [NOW, NOW])], {}),
            "a posted delta": ([column(flying, "UpDown", [1], "web/0", [NOW])], {}),
            "no absolute": ([column(flying, "UpDown", [[b"x"]], "web/0", [NOW])._replace(stands_for=2)], {"handler_error": 2}),
            "no Type": ([column(tab["Cardinality"], "Nothing", ["a"], "web/0", [NOW])], {"type_conflict": 1}),
            "a new State": ([column(tab["Cardinality"], "Cardinality", ["a"], "web/9", [NOW])], {}),
            "not a State's own": ([edge._replace(client="web/0")], {}),  # which the arrays have as well
            "of another version": ([edge._replace(values=state._replace(edge=9))], {"unknown_edge": 2}),
            "miscounted": ([edge._replace(stands_for=3)], {"bad_column": 3}),
            "of no State": ([edge._replace(values=state._replace(dump=b"x"))], {"bad_column": 2}),
        }
        for name, (columns, dead) in cases.items():
            self.hashes = dict(kept)
            content = encode_batch(STREAM, 0, 2, [good, *columns])
            spoiled = WaitingBatch(1, finish(reading_batch(content)), len(content), NONCE)
            outcomes, at_once = self.both([spoiled, *self.besides(2, NOW + 1, 5)[1:]], NOW + 5)
            self.assertEqual((name, type(outcomes[0]), outcomes[0].dead), (name, Outcome, dead))
            # the times and States from the edge of all buckets are looked at together, as arrays are
            if name not in ("a time that is none", "miscounted", "of no State"):
                self.assertEqual((name, at_once), (name, BUCKETS - 1))
        for field, content in {"none": b"x" * 40, "a newer one": keys.frame(9, AGE) + b"x"}.items():
            self.hashes = dict(kept)
            self.hashes[keys.states(0), keys.state_field(tab["Cardinality"], "web/0")] = content
            waiting = self.besides(1, NOW + 1, 5)
            waiting = [item._replace(batch=item.batch._replace(number=2), follows=1) for item in waiting]
            outcomes, at_once = self.both(waiting, NOW + 5)
            self.assertEqual((field, at_once, list(outcomes[0].dead.values()) != []), (field, BUCKETS - 1, True))

    def test_a_tab_of_two_types_is_told_apart(self) -> None:
        self.made()
        waiting = self.waiting(2, NOW + 5) + self.waiting(3, NOW + 6, type="PercentileGroup")
        outcomes, at_once = self.both(waiting, NOW + 10)
        self.assertEqual((at_once, outcomes[0].dead), (0, {"type_conflict": 3}))

    def test_a_batch_of_nothing_is_ordinary_behind_another_and_by_itself_it_is_not(self) -> None:
        self.made()
        content = encode_batch(STREAM, 0, 3, [])
        nothing = WaitingBatch(2, finish(reading_batch(content)), len(content), NONCE)
        outcomes, at_once = self.both([*self.waiting(2, NOW + 5), nothing], NOW + 5)
        self.assertEqual((at_once, [verdict.word for verdict in outcomes[0].verdicts]), (BUCKETS, [APPLIED, APPLIED]))
        self.write(outcomes)
        alone = nothing._replace(follows=3, batch=nothing.batch._replace(number=4))
        outcomes, at_once = self.both([alone], NOW + 6)
        self.assertEqual((at_once, outcomes[0].verdicts[0].word), (0, APPLIED))

    def test_what_is_done_in_c_is_done_by_python(self) -> None:
        self.made()
        kept = dict(self.hashes)
        waiting = self.waiting(2, NOW + 5, 3)
        ours = self.fold(waiting, NOW + 20)
        self.hashes = kept
        with mock.patch.object(plain, "_plain", None):
            theirs = self.fold(waiting, NOW + 20)
        self.assertEqual({type(outcome) for outcome in (*ours.values(), *theirs.values())}, {plain.PlainOutcome})
        self.assertEqual(ours, theirs)

    def test_whatever_is_out_of_the_ordinary_leaves_the_rest_as_it_is(self) -> None:
        cases: dict[str, tuple[Callable[[], object], int]] = {
            "another Type": (lambda: self.hashes.update({(keys.tabs(2), self.tabs[2].encode()): b"Gauge"}), BUCKETS - 1),
            "no mark": (lambda: self.hashes.pop((keys.marks(3), STREAM)), BUCKETS - 1),
            "a mark that is none": (lambda: self.hashes.update({(keys.marks(3), STREAM): b"x"}), BUCKETS - 1),
            "applied before": (lambda: self.hashes.update({(keys.marks(3), STREAM): encode_mark(Mark(NONCE, 2, AGE))}), BUCKETS - 1),
            "a gap": (lambda: self.hashes.update({(keys.marks(3), STREAM): encode_mark(Mark(NONCE, 0, AGE))}), BUCKETS - 1),
            "no State": (lambda: self.hashes.update({self.state(4): b"\0"}), BUCKETS - 1),
            "a State that is none": (lambda: self.hashes.update({self.state(4): keys.frame(1, AGE) + b"x" * 48}), 0),
            "a State of a newer version": (lambda: self.hashes.update({self.state(4): keys.frame(2, AGE) + b"x" * 48}), 0),
        }
        self.made()
        kept = dict(self.hashes)
        for name, (spoil, wanted) in cases.items():
            self.hashes = dict(kept)
            spoil()
            outcomes, at_once = self.both(self.waiting(2, NOW + 5), NOW + 5)
            self.assertEqual((name, at_once), (name, wanted))
            self.assertEqual(outcomes[0].verdicts[0].word, APPLIED)

    def test_an_archive_that_is_none_is_found_with_the_arrays(self) -> None:
        self.made()
        self.hashes[keys.states(1), self.state(1)[1] + b"\0001"] = keys.frame(1, AGE) + b"x" * 24
        outcomes, at_once = self.both(self.waiting(2, NOW + 20, 3), NOW + 20)
        self.assertEqual((at_once, outcomes[1].folded, outcomes[1].dead), (0, 7, {"handler_error": 2}))

    def state(self, bucket: int) -> tuple[bytes, bytes]:
        return keys.states(bucket), keys.state_field(self.tabs[bucket], "web/1")

    def test_an_event_whose_value_is_none_is_buried(self) -> None:
        self.made()
        content = encode_batch(STREAM, 0, 2, [column(self.tabs[0], "CounterGroup", [math.nan, 1.0], "web/0", [NOW, NOW])])
        spoiled = WaitingBatch(1, finish(reading_batch(content)), len(content), NONCE)
        outcomes, at_once = self.both([spoiled, *self.waiting(2, NOW + 5)[1:]], NOW + 5)
        self.assertEqual((at_once, outcomes[0].folded, outcomes[0].dead), (0, 1, {"bad_value": 1}))

    def test_an_event_whose_time_is_none_is_buried(self) -> None:
        self.made()
        outcomes, at_once = self.both(self.waiting(2, -5.0), NOW + 5)
        self.assertEqual((at_once, outcomes[0].dead), (0, {"bad_time": 3}))
