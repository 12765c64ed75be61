"""One write by key, made once; reads of one key and of many. What every type of key stands on.

A write is a transaction on its bucket. What it answers is computed from what it read; whether it was made, when nobody
knows, from a key that it writes along. The writes of one Router to one bucket take turns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from taba import names
from taba.errors import StoreUnavailable
from taba.shard.buckets import lease_key, lots, owner_key, prefix_of
from taba.shard.keys.at_once import MOST_WORDS, AtOnce, answer_of, beginning, number_of, written
from taba.shard.keys.places import Text, bucket_of, doers_key, done_key, names_key, plain_name
from taba.shard.patience import Pauses, Standing
from taba.shard.servers.connection import Command
from taba.shard.servers.gather import gather
from taba.shard.transaction import TRANSACT_SECONDS, BucketBusy, NotReplicated, Update, Writes

DONE_SECONDS = 120.0  # how long what a Router did last is remembered after it was seen unchanged; a write is tried for less
FEW_DOERS = 32  # Routers whose last write one bucket remembers without looking whether they still write
DONE_SWEEP_AFTER = 256  # writes of this Router; then it looks after those that write no more
TURN_SECONDS = 20.0  # how long a write waits for the writes of this Router to its bucket before it
BUSY_PAUSE_SECONDS = 0.01  # a transaction that needed the lease takes as long as one that did not
MOST_KEYS = 10_000  # of one MGET: a millisecond or two in which its server hears nobody else
MAX_PLACES = 16_384  # names whose places a Router remembers: some 4 MiB; then it begins anew
SWEEP_AFTER = 16  # new keys of this Router …
SWEPT_NAMES = 48  # … so many names are looked at: more than one dead one goes for each that comes, once a third are dead
KEPT_TYPES = frozenset([str, bytes])  # names of these types may be looked up by themselves
THERE, MAYBE, GONE = "there", "maybe", "gone"  # a key after a write

Place = tuple[int, bytes, int, bytes]  # of a name: its bucket and key, of how many buckets, and its bytes
Decide = Callable[[bytes, list[Any]], tuple[list[Command], Any]]  # key, replies → commands, result


class Write(NamedTuple):
    """One write by key: what it reads of its key, what it decides by that, and whether the key is there then."""

    name: bytes
    key: bytes
    reads: Sequence[Command]
    decide: Decide
    after: str
    at_once: AtOnce | None = None


class Writing:
    """What a Router has, and how it reads and writes by key."""

    def __init__(self, reactor: Any, pauses: Pauses, standing: Standing, counts: Counter[str], token: str):
        self.counts = counts
        self.standing = standing
        self._reactor = reactor
        self._pauses = pauses
        self._token = token
        self._tries = 0
        self._made = 0  # keys, since the last sweep
        self._done = 0  # writes, since we last looked after other Routers'
        self._turns: dict[int, deque[Deferred[None]] | None] = {}  # buckets that this Router writes to, and who waits for that, if any
        self._ended: deque[int] = deque()  # buckets whose turn is to be handed on
        self._is_handing_on = False
        self._written: dict[int, int] = {}  # bucket → the number of the last write of this Router there, where it is known
        self._begins: dict[int, Command] = {}  # of a bucket: how scripts that write there begin
        self._places: dict[Text, Place] = {}  # name → its bucket and key, of how many buckets; names come again

    # what a Router has

    @property
    def buckets(self) -> int:
        raise NotImplementedError

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        raise NotImplementedError

    async def read(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        raise NotImplementedError

    async def transact(self, bucket: int, reads: Sequence[Command], update: Update, seconds: float | None = None) -> Any:
        raise NotImplementedError

    async def transact_each(
        self, work: Mapping[int, tuple[Sequence[Command], Update]], seconds: float | None = None
    ) -> dict[int, Any | Exception]:
        raise NotImplementedError

    async def transact_patiently(self, bucket: int, reads: Sequence[Command], update: Update, seconds: float | None = None) -> Any:
        """`transact`, and where another transaction holds the bucket's lease, again when that is over. `seconds`: of the first."""
        end = self._reactor.seconds() + TURN_SECONDS
        while True:
            try:
                return await self.transact(bucket, reads, update, seconds)
            except BucketBusy:
                seconds = None
                if self._reactor.seconds() > end:
                    raise
                await self._pauses.wait(BUSY_PAUSE_SECONDS)

    # --- where a key is ---

    def bucket_of(self, name: Text) -> int:
        """The bucket of the key `name`."""
        return bucket_of(name, self.buckets)

    def key(self, name: Text, bucket: int | None = None) -> bytes:
        """`name` as the store has it, for `read` and `transact`; with `bucket`, in that one, beside others there."""
        return prefix_of(self.bucket_of(name) if bucket is None else bucket) + b"key:" + plain_name(name)

    # --- one operation ---

    def _place(self, name: Text, buckets: int) -> Place:
        """The bucket, of `buckets`, and the key of `name`; and `buckets`, and the bytes of `name`."""
        is_kept = type(name) in KEPT_TYPES
        if is_kept and (known := self._places.get(name)) is not None and known[2] == buckets:
            return known
        content = plain_name(name)
        bucket = names.bucket_of(content, buckets)
        key = prefix_of(bucket) + b"key:" + content
        if is_kept:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[name] = bucket, key, buckets, content
        return bucket, key, buckets, content

    async def _read_own(self, reads: Mapping[int, Sequence[Command]], passed: float = 0.0) -> dict[int, list[Any]]:
        """`read_many` of what was made here, of whose time so much is over."""
        return await self.read_many(reads)

    async def _run_here(
        self, bucket: int, write: Write, how: AtOnce, before: int, number: int, began: float
    ) -> tuple[int, bytes, NotReplicated | None] | None:
        """What the script of `at_once` answers, and who did not confirm it; None where it did nothing, or nobody knows."""
        return None

    def _beginning(self, bucket: int) -> Command:
        """How a script that writes there begins: the keys that it names beside the one that it writes are always the same."""
        begins = self._begins[bucket] = beginning(
            (owner_key(bucket), lease_key(bucket), done_key(bucket, self._token.encode()), names_key(bucket))
        )
        return begins

    async def _read(self, name: Text, command: bytes, *arguments: bytes) -> Any:
        """The reply to one read of the key `name`."""
        bucket, key, _, _ = self._place(name, self.buckets)
        return (await self.read(bucket, [(command, key, *arguments)]))[0]

    def _places_of(self, wanted: Sequence[Text]) -> list[Place]:
        """`_place` of each."""
        buckets = self.buckets
        known, place = self._places, self._place
        return [
            found if type(name) in KEPT_TYPES and (found := known.get(name)) is not None and found[2] == buckets else place(name, buckets)
            for name in wanted
        ]

    async def _read_each(self, wanted: Sequence[Text], command: bytes) -> list[Any]:
        places = self._places_of(wanted)
        reads: dict[int, list[Command]] = {}
        for bucket, key, _, _ in places:
            reads.setdefault(bucket, []).append((command, key))
        replies = await self._read_own(reads)
        in_turn = {bucket: iter(own) for bucket, own in replies.items()}  # a bucket's own come in the order in which they were asked for
        return [next(in_turn[place[0]]) for place in places]

    async def _read_strings(self, places: Sequence[Place], passed: float = 0.0) -> list[bytes | None]:
        """The strings at `places`, of whose time so much is over."""
        keys: dict[int, list[bytes]] = {}
        for bucket, key, _, _ in places:
            keys.setdefault(bucket, []).append(key)
        reads = {bucket: [(b"MGET", *lot) for lot in lots(own, MOST_KEYS)] for bucket, own in keys.items()}
        in_turn = {bucket: chain.from_iterable(own) for bucket, own in (await self._read_own(reads, passed)).items()}
        return [next(in_turn[place[0]]) for place in places]

    async def _write(self, name: Text, reads: Sequence[Command], decide: Decide, after: str = THERE, at_once: AtOnce | None = None) -> Any:
        """Do what `decide` says, once, and return its result.

        `reads` have no key yet. `decide` gets the key and the replies: whether the key is there, then those to `reads`.
        `after`: whether the key is there then. `at_once`: the same, as a server does it by itself.
        """
        bucket, key, _, content = self._place(name, self.buckets)
        write = Write(content, key, reads, decide, after, at_once)
        if bucket in self._turns:
            await self._take_turn(bucket)
        else:
            self._turns[bucket] = None
        try:
            before = self._written.pop(bucket, None)  # until we know what this one comes to
            if before is None or at_once is None or len(at_once.words) > MOST_WORDS:
                result = (await self._write_all(bucket, [write]))[0]
            else:
                result = await self._write_at_once(bucket, write, at_once, before)
            if self._made >= SWEEP_AFTER or self._done >= DONE_SWEEP_AFTER:
                await self._tidy(bucket)
            return result
        except NotReplicated as error:
            [error.result] = error.result
            raise
        finally:
            self._end_turn(bucket)

    async def _write_at_once(self, bucket: int, write: Write, how: AtOnce, before: int) -> Any:
        """The usual case in one round trip: all is as we know it. What is otherwise, a transaction finds out; also what we did, where
        the answer was lost."""
        self._tries += 1
        number = self._tries
        began = self._reactor.seconds()
        found = await self._run_here(bucket, write, how, before, number, began)
        if found is None:
            self.counts["not_at_once"] += 1
            passed = self._reactor.seconds() - began
            plan = _Plan(self, bucket, [write], (number, how))
            return (await self._carry_out(plan, max(TRANSACT_SECONDS - passed, 0.0)))[0]
        existed, text, failure = found
        self._written[bucket] = number
        self._done += 1
        if not existed and write.after == THERE:
            self._made += 1
        result = how.answer(bool(existed), text)
        if failure is not None:
            failure.result = [result]
            raise failure
        return result

    async def _write_all(self, bucket: int, writes: Sequence[Write]) -> list[Any]:
        """Do what all of `writes`, on different keys of `bucket`, say, once; their results. It is this Router's turn there."""
        return await self._carry_out(_Plan(self, bucket, writes), None)

    async def _carry_out(self, plan: _Plan, seconds: float | None) -> list[Any]:
        result: list[Any] = await self.transact_patiently(plan.bucket, plan.reads, plan.update, seconds)
        self._learn(plan)
        return result

    def _learn(self, plan: _Plan) -> None:
        """What `plan` wrote is the last that this Router wrote there."""
        if plan.number:
            self._written[plan.bucket] = plan.number

    async def _write_lots(self, lots: Mapping[int, Sequence[Write]]) -> dict[int, list[Any] | Exception]:
        """`_write_all` of many buckets at once; an exception stands where it would raise one."""
        results: dict[int, Any] = {}
        turns: list[int] = []
        try:
            for bucket in sorted(lots):  # in one order: two that want the same never wait for each other
                try:
                    await self._take_turn(bucket)
                except StoreUnavailable as error:
                    results[bucket] = error
                else:
                    turns.append(bucket)
                    self._written.pop(bucket, None)
            plans = {bucket: _Plan(self, bucket, lots[bucket]) for bucket in turns}
            results.update(await self.transact_each({bucket: (plan.reads, plan.update) for bucket, plan in plans.items()}))
            busy = [bucket for bucket in turns if isinstance(results[bucket], BucketBusy)]
            # all at once: each may take until a lease is abandoned, and who waits for a turn here waits for no more than one
            again = [self.transact_patiently(bucket, plans[bucket].reads, plans[bucket].update) for bucket in busy]
            results.update(zip(busy, await gather(again), strict=True))
            for bucket, plan in plans.items():
                if not isinstance(results[bucket], Exception):
                    self._learn(plan)
                await self._tidy(bucket)
            return results
        finally:
            for bucket in turns:
                self._end_turn(bucket)

    async def _tidy(self, bucket: int) -> None:
        """Once in a while, after a write there: forget what is gone from `bucket`."""
        if self._made >= SWEEP_AFTER:
            self._made = 0
            await self._sweep(bucket)
        if self._done >= DONE_SWEEP_AFTER:
            self._done = 0
            await self._sweep_doers(bucket)

    async def _sweep(self, bucket: int) -> None:
        """Take out of the list of names what has expired: of some at random, so many that there are never more dead than living."""
        try:
            (names,) = await self.read(bucket, [(b"ZRANDMEMBER", names_key(bucket), b"%d" % SWEPT_NAMES)])
            await self._still_there({bucket: names})
        except StoreUnavailable:
            self.counts["sweeps_left"] += 1  # what was asked for is done; the next one will

    async def _sweep_doers(self, bucket: int) -> None:
        """Forget what Routers did last that write no more: none of them is in the middle of a write that began so long ago."""
        try:
            (doers,) = await self.read(bucket, [(b"SMEMBERS", doers_key(bucket))])
            others = [doer for doer in doers if doer != self._token.encode()] if len(doers) > FEW_DOERS else []
            said = await self.read(bucket, [(b"GET", done_key(bucket, doer)) for doer in others])
            gone = [
                (doer, content)
                for doer, content in zip(others, said, strict=True)
                if self.standing.seconds((bucket, doer), content) >= DONE_SECONDS
            ]
            if not gone:
                return

            def forget(replies: list[Any]) -> Writes:
                same = [doer for (doer, content), now in zip(gone, replies, strict=True) if now == content]
                keys = [done_key(bucket, doer) for doer in same]
                return Writes([(b"DEL", *keys), (b"SREM", doers_key(bucket), *same)] if same else [])

            await self.transact(bucket, [(b"GET", done_key(bucket, doer)) for doer, _ in gone], forget)
        except StoreUnavailable:
            self.counts["sweeps_left"] += 1  # what was asked for is done; the next one will

    async def _take_turn(self, bucket: int) -> None:
        # one write of this Router to a bucket at a time: `done` is one key, and the others would only meet its WATCH
        if bucket not in self._turns:
            self._turns[bucket] = None
            return
        waiting = self._turns[bucket]
        if waiting is None:
            waiting = self._turns[bucket] = deque()
        turn: Deferred[None] = Deferred(lambda given_up: waiting.remove(given_up))
        waiting.append(turn)
        try:
            await turn.addTimeout(TURN_SECONDS, self._reactor)
        except DeferredTimeout:
            raise StoreUnavailable(f"bucket {bucket}: earlier writes are not done within {TURN_SECONDS:g} s") from None

    def _end_turn(self, bucket: int) -> None:
        if not self._turns[bucket]:
            del self._turns[bucket]
            return
        self._ended.append(bucket)
        if self._is_handing_on:
            return  # the next one ended at once, as all do of a closed Router: one inside the other, many would not fit on the stack
        self._is_handing_on = True
        try:
            while self._ended:
                bucket = self._ended.popleft()
                waiting = self._turns[bucket]
                if waiting:
                    waiting.popleft().callback(None)
                else:
                    del self._turns[bucket]  # who waited gave up meanwhile
        finally:
            self._is_handing_on = False

    async def _still_there(self, page: Mapping[int, list[bytes]]) -> list[bytes]:
        """The names of keys that have not expired or become empty; those that have are taken out of the list of names."""
        reads = {bucket: [(b"EXISTS", self.key(name, bucket)) for name in names] for bucket, names in page.items() if names}
        there: list[bytes] = []
        for bucket, replies in (await self.read_many(reads)).items():
            gone = [name for name, found in zip(page[bucket], replies, strict=True) if not found]
            there += [name for name, found in zip(page[bucket], replies, strict=True) if found]
            if gone:
                await self.transact_patiently(
                    bucket, [(b"EXISTS", self.key(name, bucket)) for name in gone], self._forgetting(bucket, gone)
                )
        return there

    def _forgetting(self, bucket: int, names: Sequence[bytes]) -> Callable[[list[Any]], Writes]:
        def update(replies: list[Any]) -> Writes:
            gone = [name for name, found in zip(names, replies, strict=True) if not found]
            return Writes([(b"ZREM", names_key(bucket), *gone)] if gone else [])

        return update


class _Plan:
    """The transaction that does what `writes` say, once. `late`: the number of a script that may have done it, or may yet, and how.

    Once it is done, `number` is that of the last write of this Router to the bucket; 0 where it has none.
    """

    def __init__(self, writing: Writing, bucket: int, writes: Sequence[Write], late: tuple[int, AtOnce] | None = None):
        self.bucket = bucket
        self.number = 0
        self._writing, self._writes = writing, writes
        self._late = late
        self._done = done_key(bucket, writing._token.encode())
        self._results: dict[int, list[Any]] = {}
        self.reads: list[Command] = [(b"GET", self._done)]
        for write in writes:
            self.reads += [(b"EXISTS", write.key), *((command[0], write.key, *command[1:]) for command in write.reads)]

    def update(self, replies: list[Any]) -> Writes:
        writing, bucket = self._writing, self.bucket
        applied = self.number = number_of(replies[0])
        if applied in self._results:
            return Writes([], self._results[applied])  # an earlier try, whose answer was lost
        if self._late is not None and applied == self._late[0]:
            return Writes([], [answer_of(replies[0], self._late[1].answer)])
        commands: list[Command] = []
        result: list[Any] = []
        place = 1
        for write in self._writes:
            own, place = replies[place : place + 1 + len(write.reads)], place + 1 + len(write.reads)
            wanted, one = write.decide(write.key, own)
            result.append(one)
            if not wanted:
                continue
            commands += wanted
            if write.after == THERE and not own[0]:
                commands.append((b"ZADD", names_key(bucket), b"0", write.name))
                writing._made += 1
            elif write.after == GONE:
                commands.append((b"ZREM", names_key(bucket), write.name))
        if not commands and self._late is None:
            return Writes([], result)
        # a script that may come yet compares no more than the number: it must find another also where there is nothing to write
        writing._tries += 1
        self.number = writing._tries
        self._results[self.number] = result
        commands.append((b"SET", self._done, written(self.number)))
        if replies[0] is None:
            commands.append((b"SADD", doers_key(bucket), writing._token.encode()))
        writing._done += 1
        return Writes(commands, result)
