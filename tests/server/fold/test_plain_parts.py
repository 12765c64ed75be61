"""What is done of ordinary buckets in C is what Python does, and whatever looks odd is left to Fold."""

from __future__ import annotations

import struct
from random import Random
from typing import Any, cast
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import Batch, Block, Column, Verdict, decoded_sections
from taba.batch.columns import Columns
from taba.names import bucket_of
from taba.server import keys
from taba.server.fold import plain
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.marks import Mark, encode_mark
from tests.examples import examples

BUCKETS = 4
NONCE = b"12345678"
DUMPING = {"A": b"A", "B": b"B", "Other": None}
TABS = [name for name in (f"tab{number}" for number in range(60)) if bucket_of(name, BUCKETS) == 0]


def drawn(random: Random) -> list[WaitingBatch]:
    """Batches for bucket 0, most of them ordinary."""
    found = []
    numbers = dict.fromkeys((b"s" * 16, b"t" * 16), 0)
    for _ in range(random.randint(1, 4)):
        parts: list[Any] = []
        for _ in range(random.randint(1, 3)):
            type = random.choice("AB")
            tabs = random.sample(TABS[:8] if type == "A" else TABS[8:], random.randint(1, 3))
            states = [(client, tab) for tab in tabs for client in random.sample("xyz", random.randint(1, 3))]
            states += random.sample(states, 1) if random.random() < 0.1 else []
            counts = tuple(random.randint(1, 3) for _ in states)
            times = struct.pack(f"<{sum(counts)}d", *[random.random() for _ in range(sum(counts))])
            parts.append(Block.of(type, [keys.state_field(tab, client) for client, tab in states], states, counts, times, times))
        stream = random.choice([*numbers])
        before, numbers[stream] = numbers[stream], numbers[stream] + random.randint(1, 2)
        found.append(WaitingBatch(before, Batch(stream, 0, numbers[stream], Columns(parts)), 100, NONCE))
    return found


def spoiled(random: Random, waiting: list[WaitingBatch]) -> list[WaitingBatch]:
    """The same with something out of the ordinary."""
    at = random.randrange(len(waiting))
    item = waiting[at]
    first, *rest = cast(list[Block], decoded_sections(item.batch.columns))

    def block(type: str, tab: str) -> Block:
        return Block.of(type, [keys.state_field(tab, "x")], [("x", tab)], (1,), bytes(8), bytes(8))

    def having(*parts: Any) -> WaitingBatch:
        return item._replace(batch=item.batch._replace(columns=Columns([*parts])))

    elsewhere = next(name for name in (f"tab{number}" for number in range(60)) if bucket_of(name, BUCKETS) == 1)
    kinds: list[WaitingBatch] = [
        item._replace(nonce=b""),
        item._replace(part=("key",)),  # type: ignore[arg-type]
        item._replace(header=("mark",)),  # type: ignore[arg-type]
        item._replace(batch=item.batch._replace(meanings=("m",))),  # type: ignore[arg-type]
        item._replace(batch=item.batch._replace(bad_meanings=1)),
        item._replace(batch=item.batch._replace(columns=[Column("x", TABS[0], "A", bytes(8), bytes(8))])),
        having(first, block("A", elsewhere), *rest),
        having(first, block("Other", TABS[0]), *rest),
        having(first, block("None", TABS[0]), *rest),
        having(first, block("A" if first.type == "B" else "B", next(iter(first.moved))), *rest),
        having(first, [Column("x", TABS[0], "A", bytes(8), bytes(8))]),
        having(block("A", "x" * 300), first),
    ]
    chosen = random.randrange(len(kinds) + 1)
    if chosen == len(kinds):
        return [having()]  # nothing at all: behind others such a batch is ordinary, and moves its mark
    return [*waiting[:at], kinds[chosen], *waiting[at + 1 :]]


class Dumping(dict[str, Any]):
    def __missing__(self, type: str) -> None:
        return None


class PartsTests(SynchronousTestCase):
    def setUp(self) -> None:
        if plain._plain is None:
            raise SkipTest("_plain is not built: needs a compiler")

    def both(self, name: str, *given: Any) -> Any:
        found = getattr(plain, name)(*given)
        with mock.patch.object(plain, "_plain", None):
            self.assertEqual(found, getattr(plain, name)(*given))
        return found

    @examples(60)
    @given(st.integers(0, 2**32))
    def test_what_is_ordinary_is_planned_judged_and_written_alike(self, seed: int) -> None:
        random = Random(seed)
        waiting = drawn(random)
        plan = self.both("plan", 0, waiting, BUCKETS, Dumping(DUMPING))
        blocks: list[Any] = [block for item in waiting for block in decoded_sections(item.batch.columns)]
        self.assertEqual(plan.events, sum(len(block.times) >> 3 for block in blocks))
        self.assertEqual(sum(plan.moved.values()), plan.events)
        self.assertEqual({type(one) for one in (plan, *plan.groups)}, {plain.Plan, plain.PlainGroup})
        fields = [field for group in plan.groups for field in group.fields]
        replies = [
            [encode_mark(Mark(NONCE, 0, random.randint(0, 9))) for _ in plan.reads[0][2:]],
            list(plan.types),
            [bytes([random.randrange(256)]) * random.randint(6, 9) for _ in fields],
        ]
        [one] = self.both("judge", {0: waiting}, {0: plan}, {0: replies}, 5)
        self.assertEqual((type(one), *one[:3]), (plain.Plain, 0, plan, replies[2]))
        verdicts = one.verdicts
        self.assertEqual([verdict.detail for verdict in verdicts], [item.batch.number for item in waiting])
        self.assertEqual([*map(hash, verdicts)], [hash(tuple([*verdict])) for verdict in verdicts])
        several = [one._replace(bucket=bucket) for bucket in random.sample(range(BUCKETS), random.randint(1, BUCKETS))]
        gathered = self.both("gather", several)
        written: dict[str, Any] = {}
        emptied: dict[int, list[bytes]] = {}
        for name, (buckets, groups, contents, *_) in gathered.items():
            self.assertEqual(len(contents), sum(len(group.fields) for group in groups))
            further = {place: [b"field", b"content"] for place in range(len(buckets)) if random.random() < 0.3}
            written[name] = [content + b"!" for content in contents], further
            emptied.update({bucket: [b"gone"] for bucket in buckets if random.random() < 0.2})
        outcomes = self.both("write", several, written, emptied)
        self.assertEqual([*outcomes], [its.bucket for its in several])
        for bucket, outcome in outcomes.items():
            self.assertEqual((type(outcome), outcome.folded, outcome.verdicts), (plain.PlainOutcome, plan.events, verdicts))
            wanted = [b"HSET", b"HSET", *([b"HDEL"] if bucket in emptied else []), b"HINCRBY"]
            self.assertEqual([command[0] for command in outcome.commands], wanted)
        del written[random.choice([*written])]
        self.assertEqual(self.both("write", several, written, emptied), {})
        place = random.randrange(3)
        replies[place][random.randrange(len(replies[place]))] = random.choice((None, b"", b"x" * 5))
        self.assertEqual(self.both("judge", {0: waiting}, {0: plan}, {0: replies}, 5), [])

    def test_buckets_of_which_one_is_not_ordinary_are_judged_and_written_by_themselves(self) -> None:
        waiting = dict(enumerate(drawn(Random(seed)) for seed in range(BUCKETS)))
        plans = {bucket: self.both("plan", 0, its, BUCKETS, Dumping(DUMPING)) for bucket, its in waiting.items()}
        replies = {
            bucket: [
                [encode_mark(Mark(NONCE, 0, 1)) for _ in plan.reads[0][2:]],
                list(plan.types),
                [b"%06d" % place for place in range(sum(len(group.fields) for group in plan.groups))],
            ]
            for bucket, plan in plans.items()
        }
        plans[1] = None
        replies[2][0][0] = None
        judged = self.both("judge", waiting, plans, replies, 5)
        self.assertEqual([one.bucket for one in judged], [bucket for bucket in range(BUCKETS) if bucket not in (1, 2)])
        gathered = self.both("gather", judged)
        written: dict[str, Any] = {name: (contents, {}) for name, (_, _, contents, *_) in gathered.items()}
        every = self.both("write", judged, written, {})
        self.assertEqual([*every], [one.bucket for one in judged])
        for name in written:  # what one of these Types has is at its place, whoever of the others is left out
            some = self.both("write", judged, {name: written[name]}, {})
            both = [one.bucket for one in judged if {group.type for group in one.plan.groups} == {name}]
            self.assertEqual(some, {bucket: every[bucket] for bucket in both})

    @examples(60)
    @given(st.integers(0, 2**32))
    def test_what_is_out_of_the_ordinary_is_not_planned(self, seed: int) -> None:
        random = Random(seed)
        self.assertIsNone(self.both("plan", 0, spoiled(random, drawn(random)), BUCKETS, Dumping(DUMPING)))

    def test_a_batch_that_does_not_follow_is_not_judged(self) -> None:
        waiting = [item for item in drawn(Random(1))][:1]
        plan = self.both("plan", 0, waiting, BUCKETS, Dumping(DUMPING))
        rest = [list(plan.types), [b"x" * 6] * sum(len(group.fields) for group in plan.groups)]
        good = Mark(NONCE, 0, 1)
        for mark in (good._replace(nonce=b"87654321"), good._replace(number=1), good._replace(number=9), good._replace(number=2**63)):
            self.assertEqual(self.both("judge", {0: waiting}, {0: plan}, {0: [[encode_mark(mark)], *rest]}, 5), [])
        self.assertEqual(len(self.both("judge", {0: waiting}, {0: plan}, {0: [[encode_mark(good)], *rest]}, 5)), 1)

    def test_what_is_nothing_of_the_kind_raises(self) -> None:
        waiting = drawn(Random(1))
        planned = plain.plan(0, waiting, BUCKETS, Dumping(DUMPING))
        assert planned is not None
        contents = [b"x" * 6] * sum(len(group.fields) for group in planned.groups)
        good = plain.Plain(0, planned, contents, [], [])
        [*names] = dict.fromkeys(group.type for group in planned.groups)
        nothing = plain._SAYS_NOTHING
        nobody: Any = ()
        wrongs: Any = (
            ([()], {}, {}, keys.of, nothing),
            ([good._replace(contents=contents[1:])], {}, {}, keys.of, nothing),
            ([good._replace(plan=nobody)], {}, {}, keys.of, nothing),
            ([good], dict.fromkeys(names, ()), {}, keys.of, nothing),
            ([good], dict.fromkeys(names, ([], {})), {}, keys.of, nothing),
            ([good], dict.fromkeys(names, (contents, {0: b"field"})), {}, keys.of, nothing),
            ([good], dict.fromkeys(names, (contents, {})), {0: b"field"}, keys.of, nothing),
            ([good], dict.fromkeys(names, (contents, {})), {}, lambda bucket: (), nothing),
            ([good], dict.fromkeys(names, (contents, {})), {}, keys.of, ()),
        )
        for wrong in wrongs:
            with self.assertRaises(TypeError):
                plain._plain.write(*wrong)
        for wrong in ([()], [good._replace(contents=contents[1:])], (good,)):
            with self.assertRaises(TypeError):
                plain._plain.gather(wrong)
        for wrong in ({0: ()}, {0: planned._replace(reads=[])}, {0: planned._replace(types=nobody)}):
            with self.assertRaises(TypeError):
                plain._plain.judge({0: waiting}, wrong, {0: [[], [], []]}, 5, (Verdict, plain.Plain))
        for name in ("plan", "judge", "gather", "write"):
            with self.assertRaises(TypeError):
                getattr(plain._plain, name)()
