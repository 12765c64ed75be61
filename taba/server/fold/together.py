"""The cycles of several buckets as one: each decides by its own marks, and the States of all are loaded, folded and dumped at once. Pure.

1. A bucket's commands and verdicts are those that its cycle alone would have: only the calls of Handlers are shared. Where so many
   Events are at fault that the tries to find them may not be enough for all, each bucket that has such has its tries alone.
2. Only Types of Taba's own: a Handler that may hang would hold up the buckets of others.
3. All cycles go on to their next need; what they want to read is read in one go, and what is to be folded waits until nobody reads.
4. A bucket by itself has the short way of ordinary ones as well (Alone): nothing of that depends on others.
5. Of what takes long others have their turns in between (see Pace), which all cycles together count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

from taba.server.fold.bounds import DEFAULT_BOUNDS, Bounds
from taba.server.fold.cycle import Cycle, CycleSteps, Outcome, Reads, WaitingBatch, columns_alone
from taba.server.fold.deciding import Fold, fold_cycle
from taba.server.fold.in_all import ENDLESS, Room
from taba.server.fold.plain import Plan, fold_plain, judge, plan
from taba.server.fold.sorting import bury_bad
from taba.server.fold.type_groups import TypeGroup, are_good, dumps_of
from taba.server.keys import Framed, Kept
from taba.server.router import Command
from taba.server.work.bench import Bench
from taba.server.work.folding import MAX_TRIES, TRIES_FOR_ONE
from taba.server.work.pace import MOST_AT_ONCE, PAUSE, Pace, Pause
from taba.server.work.rows import Folded, Parts, Work
from taba.server.work.runs import Runs
from taba.shard import MoreOfMany, Writes

MOST_AT_FAULT = MAX_TRIES // TRIES_FOR_ONE - 1  # Events of one Type: for so many there are tries enough, however they lie

_new_tuple = cast(Any, tuple.__new__)  # without the call of Python that a NamedTuple's own is: one for each bucket

ReadsOfMany = dict[int, Sequence[Command]]
StepsOfMany = Generator[ReadsOfMany | Pause, Any, dict[int, Outcome]]


class _Joins(NamedTuple):
    """The groups of one bucket, which have their `folded` when it goes on."""

    groups: list[TypeGroup]


class _Joining(Fold):
    def check(self, groups: list[TypeGroup]) -> None:
        """With those of the other buckets: see _fold_joined."""

    def fold_groups(self, groups: list[TypeGroup]) -> Generator[Any, Any, None]:
        if groups:
            yield _Joins(groups)


class Together:
    """The cycles of some buckets, in one transaction, given what waits for each of them."""

    def __init__(self, waiting: Mapping[int, Sequence[WaitingBatch]], buckets: int, bench: Bench):
        self._waiting, self._buckets, self._bench = waiting, buckets, bench
        dumping, beside = bench.dumping, bench.beside
        self._plans = {bucket: plan(bucket, its, buckets, dumping, beside) for bucket, its in waiting.items()}
        self._cycles: dict[int, Cycle] = {}  # of those that are not ordinary

    @property
    def is_long(self) -> bool:
        """Whether others should have their turn before `reads`."""
        left = [bucket for bucket, planned in self._plans.items() if planned is None]
        return bool(left) and columns_alone(chain.from_iterable(map(self._waiting.__getitem__, left))) >= MOST_AT_ONCE

    def _cycle(self, bucket: int) -> Cycle:
        cycle = self._cycles.get(bucket)
        if cycle is None:
            cycle = self._cycles[bucket] = Cycle(bucket, self._waiting[bucket], self._buckets)
        return cycle

    @property
    def reads(self) -> ReadsOfMany:
        """What `fold` needs the replies of."""
        return {bucket: self._cycle(bucket).reads if planned is None else planned.reads for bucket, planned in self._plans.items()}

    def _left(self, bucket: int, replies: Sequence[Any]) -> Sequence[Any]:
        """The replies to what the bucket's Cycle reads."""
        planned = self._plans[bucket]
        return replies if planned is None else _in_its_order(planned, self._cycle(bucket), replies)

    def fold(
        self,
        replies: Mapping[int, Sequence[Any]],
        now: float,
        age: int | None,
        bounds: Bounds = DEFAULT_BOUNDS,
        in_all: Room = ENDLESS,
    ) -> StepsOfMany:
        """By bucket the Outcome of its cycle, of those in `replies` but who is to be done alone; yields what must be read in addition."""
        bench, outcomes = self._bench, dict[int, Outcome]()
        if age is not None:
            outcomes = yield from fold_plain(judge(self._waiting, self._plans, replies, age), bench, now, age)
            if len(outcomes) == len(replies):
                return outcomes
        folds = {
            bucket: _Joining(self._cycle(bucket), self._left(bucket, its), bench, now, age, bounds, in_all)
            for bucket, its in replies.items()
            if bucket not in outcomes
        }
        pace = Pace()
        for fold in folds.values():
            fold.pace = pace
        steps = {bucket: fold.run() for bucket, fold in folds.items()}
        sent: Mapping[int, Any] = dict.fromkeys(folds)
        joins: dict[int, list[TypeGroup]] = {}
        tabs = clients = 0  # that these cycles make: none has the room that another took
        while sent:
            reads: ReadsOfMany = {}
            for bucket, answer in sent.items():
                new = folds[bucket].newcomers
                if tabs or clients:
                    new.in_all = in_all._replace(tabs=in_all.tabs - tabs, clients=in_all.clients - clients)
                tabs, clients = tabs - new.made_tabs, clients - new.made_clients
                try:
                    need = steps[bucket].send(answer)
                    while isinstance(need, Pause):
                        yield need
                        need = steps[bucket].send(None)
                except StopIteration as stop:
                    outcomes[bucket] = stop.value
                    continue
                finally:
                    tabs, clients = tabs + new.made_tabs, clients + new.made_clients
                if isinstance(need, Reads):
                    reads[bucket] = need.commands
                elif isinstance(need, _Joins):
                    joins[bucket] = need.groups
                else:
                    raise TypeError(f"bucket {bucket}: work that is done elsewhere")
            if reads:
                sent = yield reads
            else:
                alone: set[int] = set()
                if pace.is_long:
                    yield PAUSE  # what all do at once, and what is written of it, have turns of their own
                if joins:
                    waiting = [(folds[bucket], group) for bucket, groups in joins.items() for group in groups]
                    alone = yield from _fold_joined(waiting, bench, now)
                sent, joins = {bucket: None for bucket in joins if bucket not in alone}, {}
        return {bucket: outcomes[bucket] for bucket in replies if bucket in outcomes}


class Alone:
    """The cycle of one bucket by itself, given what waits for it; `plainly`: the short way, where that is ordinary."""

    def __init__(self, bucket: int, waiting: Sequence[WaitingBatch], buckets: int, bench: Bench, plainly: bool = True):
        self._bucket, self._waiting, self._buckets, self._bench = bucket, waiting, buckets, bench
        self._plan = plan(bucket, waiting, buckets, bench.dumping, bench.beside) if plainly else None
        self._made: Cycle | None = None  # for what is not ordinary

    @property
    def is_ordinary(self) -> bool:
        """So far."""
        return self._plan is not None

    @property
    def is_long(self) -> bool:
        """Whether others should have their turn before `reads`."""
        return self._plan is None and columns_alone(self._waiting) >= MOST_AT_ONCE

    @property
    def _cycle(self) -> Cycle:
        if self._made is None:
            self._made = Cycle(self._bucket, self._waiting, self._buckets)
        return self._made

    @property
    def reads(self) -> list[Command]:
        """What `fold` needs the replies of."""
        return self._cycle.reads if self._plan is None else self._plan.reads

    def fold(
        self, replies: Sequence[Any], now: float, age: int | None, bounds: Bounds = DEFAULT_BOUNDS, in_all: Room = ENDLESS
    ) -> CycleSteps:
        """As `fold_cycle`."""
        bucket, bench, planned = self._bucket, self._bench, self._plan
        if planned is not None:
            plain = () if age is None else judge({bucket: self._waiting}, {bucket: planned}, {bucket: replies}, age)
            if plain and age is not None:
                steps = fold_plain(plain, bench, now, age)
                sent: Any = None
                try:
                    while True:
                        need = steps.send(sent)
                        its = yield (need if isinstance(need, Pause) else Reads([*need[bucket]]))
                        sent = None if isinstance(need, Pause) else {bucket: its}
                except StopIteration as stop:
                    outcome: Outcome | None = stop.value.get(bucket)
                if outcome is not None:
                    return outcome
            replies = _in_its_order(planned, self._cycle, replies)
        return (yield from fold_cycle(self._cycle, replies, bench, now, age, bounds, in_all))


def _in_its_order(planned: Plan, cycle: Cycle, replies: Sequence[Any]) -> Sequence[Any]:
    """The replies to what `cycle` reads, given those to what was planned: States were read by Type, and a Cycle has them as they came."""
    if len(planned.groups) == 1 and planned.besides is None:
        return replies
    marks, types, contents = replies
    if planned.besides is not None:  # whose Tabs were read last, too
        known = dict(zip(planned.reads[1][2:], types, strict=True))
        types = [known[tab.encode()] for tab in cycle.tabs]
    found = dict(zip(planned.reads[2][2:], contents, strict=True))
    return [marks, types, list(map(found.__getitem__, cycle.fields))]


class _Joint:
    """The groups of one Type, their rows one after the other."""

    def __init__(self, type: str):
        self.type = type
        self.members: list[tuple[Fold, TypeGroup, int]] = []  # and where its rows begin
        self.rows = 0

    def add(self, fold: Fold, group: TypeGroup) -> None:
        self.members.append((fold, group, self.rows))
        self.rows += len(group.states)

    def check(self) -> None:
        """Bury what cannot be folded; where one bucket has such, each looks at its own."""
        if not are_good([group for _, group, _ in self.members]):
            for fold, group, _ in self.members:
                if not are_good([group]):
                    bury_bad(group, fold.burial)

    @property
    def work(self) -> Work:
        runs = Runs()
        for _, group, begin in self.members:
            runs.extend(group.runs, begin)
        merges = [merge for _, group, begin in self.members for merge in dumps_of(group, begin)]
        return Work(self._states, runs, merges=merges)

    @property
    def _states(self) -> Sequence[Framed]:
        states = [group.states for _, group, _ in self.members]
        if all(isinstance(its, Kept) for its in states):
            return Kept(list(chain.from_iterable(its.contents for its in states)))  # type: ignore[attr-defined]
        return list(chain.from_iterable(states))

    def wanted(self, rows: list[int]) -> dict[Fold, tuple[TypeGroup, list[int], int]]:
        """By bucket which of its rows these are."""
        wanted: dict[Fold, tuple[TypeGroup, list[int], int]] = {}
        members = iter(self.members)
        fold, group, begin = next(members)
        for row in sorted(rows):
            while row >= begin + len(group.states):
                fold, group, begin = next(members)
            wanted.setdefault(fold, (group, [], begin))[1].append(row - begin)
        return wanted

    def deal(self, folded: Folded) -> set[int]:
        """Give each group what became of its rows. Which buckets are to be folded alone, as their Events used up the tries."""
        dumps = list(map(folded.states.__getitem__, range(self.rows))) if len(folded.states) == self.rows else None
        for _, group, begin in self.members:
            end = begin + len(group.states)
            states = dict(enumerate(dumps[begin:end])) if dumps is not None else _between(folded.states, begin, end)
            group.folded = Folded(states, *[_between(its, begin, end) if its else {} for its in folded[1:]])
        if sum(len(places) for of_row in folded.spoiled.values() for _, places in of_row) <= MOST_AT_FAULT:
            return set()
        return {fold.cycle.bucket for fold, group, _ in self.members if group.folded is not None and group.folded.spoiled}


def _between(of_all: dict[int, Any], begin: int, end: int) -> dict[int, Any]:
    return {row - begin: of_all[row] for row in range(begin, end) if row in of_all} if of_all else {}


def _fold_joined(waiting: Sequence[tuple[Fold, TypeGroup]], bench: Bench, now: float) -> Generator[ReadsOfMany | Pause, Any, set[int]]:
    """Have the `folded` of each group; which buckets are to be folded alone."""
    alone: set[int] = set()
    joints: dict[str, _Joint] = {}
    for fold, group in waiting:
        joints.setdefault(group.type, _Joint(group.type)).add(fold, group)
    for joint in joints.values():
        joint.check()
    running: list[tuple[_Joint, Any, Parts | None]] = [
        (joint, bench.folding(joint.type, joint.work, now), None) for joint in joints.values()
    ]
    while running:
        wants: list[tuple[_Joint, Any, dict[Fold, tuple[TypeGroup, list[int], int]]]] = []
        for joint, folding, parts in running:
            try:
                need = folding.send(parts)
                while isinstance(need, Pause):
                    yield need
                    need = folding.send(None)
            except StopIteration as stop:
                alone |= joint.deal(stop.value)
                continue
            wants.append((joint, folding, joint.wanted(need)))
        if not wants:
            break
        by_fold: dict[Fold, list[tuple[TypeGroup, list[int]]]] = {}
        for _, _, wanted in wants:
            for fold, (group, rows, _) in wanted.items():
                by_fold.setdefault(fold, []).append((group, rows))
        reading = {fold.cycle.bucket: fold.read_parts(its) for fold, its in by_fold.items()}
        replies = yield {bucket: next(steps).commands for bucket, steps in reading.items()}
        found = {bucket: iter(_returned(steps, replies[bucket])) for bucket, steps in reading.items()}
        running = []
        for joint, folding, wanted in wants:
            of_joint: Parts = {}
            for fold, (_, _, begin) in wanted.items():
                of_joint.update((begin + row, its) for row, its in next(found[fold.cycle.bucket]).items())
            running.append((joint, folding, of_joint))
    return alone


def _returned(steps: Generator[Reads, Any, list[Parts]], replies: Sequence[Any]) -> list[Parts]:
    try:
        steps.send(replies)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("one read is all that parts take")


def advance_many(steps: StepsOfMany, sent: Any, breathe: Callable[[], Awaitable[None]]) -> Any:
    """Run a fold to its next need, as an update of Router.transact_many: Writes by bucket, MoreOfMany, or an awaitable of one."""
    step = _step(steps, sent, breathe)
    return _advance_later(steps, breathe) if isinstance(step, Pause) else step


def _step(steps: StepsOfMany, sent: Any, breathe: Callable[[], Awaitable[None]]) -> Mapping[int, Writes] | MoreOfMany | Pause:
    try:
        need = steps.send(sent)
    except StopIteration as stop:
        outcomes: dict[int, Outcome] = stop.value
        return {bucket: _new_tuple(Writes, (outcome[0], outcome)) for bucket, outcome in outcomes.items()}
    return need if isinstance(need, Pause) else MoreOfMany(need, lambda replies: advance_many(steps, replies, breathe))


async def _advance_later(steps: StepsOfMany, breathe: Callable[[], Awaitable[None]]) -> Mapping[int, Writes] | MoreOfMany:
    while True:
        await breathe()
        step = _step(steps, None, breathe)
        if not isinstance(step, Pause):
            return step
