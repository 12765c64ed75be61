"""Writers that count, each under a mark of its own as folds do: afterwards every step was applied exactly once, or the sums tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from taba.errors import StoreUnavailable
from taba.shard.buckets import prefix_of
from taba.shard.router import Router
from taba.shard.servers.connection import Command
from taba.shard.transaction import BucketBusy, Writes
from tests.patience import PATIENCE_SECONDS


async def until(is_so: Callable[[], Any]) -> None:
    """Return once it is so; the test's own timeout is what ends this otherwise."""
    while not is_so():
        await deferLater(reactor, 0.02)


class Load:
    """`start` it, do to the store what is to be done, `await stop()`; then `sums` must be `done`. It ends with `case`."""

    def __init__(self, case: TestCase, routers: Sequence[Router], buckets: Sequence[int], writers: int = 2, rest: float = 0.0):
        """`rest`: seconds for which a writer rests after each step, where a test waits long for something else."""
        case.addCleanup(self.cancel)
        self.done: Counter[int] = Counter()  # steps that were acknowledged, by bucket
        self.gaps = 0  # a mark that was acknowledged and is gone: the store went back in time
        self.busy = 0  # answers that said: another transaction holds the bucket
        self.refused = 0  # other answers that said: try later
        self.refusal = ""  # what the last of them said
        self.longest = 0.0  # seconds that one step took
        self.errors: list[Exception] = []
        self._is_running = self._is_cancelled = False
        self._rounds: Counter[str] = Counter()  # times that each writer has stepped in every bucket
        self._routers, self._buckets, self._writers, self._rest = routers, buckets, writers, rest
        self._running: Deferred[Any] | None = None
        self._writing: list[Deferred[None]] = []

    def start(self) -> None:
        self._is_running = True
        work = [(router, f"{one}-{number}") for one, router in enumerate(self._routers) for number in range(self._writers)]
        self._writing = [ensureDeferred(self._write(router, name)) for router, name in work]
        self._running = gatherResults(self._writing)

    async def stop(self) -> None:
        self._is_running = False
        assert self._running is not None
        await self._running

    def cancel(self) -> Deferred[Any]:
        """End it at once, wherever it stands."""
        self._is_running, self._is_cancelled = False, True
        for one in self._writing:
            one.cancel()
        if self._running is not None:
            self._running.addErrback(lambda _: None)  # said by `stop`, where anybody waits for that
        return DeferredList(self._writing, consumeErrors=True)

    async def run(self, seconds: float) -> None:
        """Let it run for so long."""
        await deferLater(reactor, seconds)

    async def until(self, steps: int) -> None:
        """Let it run until so many steps more are done."""
        goal = self.done.total() + steps
        await self._waited(lambda: self.done.total() >= goal, f"{steps} steps more")

    async def another_round(self) -> None:
        """Let each writer step in every bucket once more: so that each has seen what was lost of its steps, and brought it back."""
        goals = {name: rounds + 2 for name, rounds in self._rounds.items()}  # the one that it is in began before
        await self._waited(lambda: all(self._rounds[name] >= goal for name, goal in goals.items()), f"each writer in its round of {goals}")

    async def _waited(self, is_so: Callable[[], bool], what: str) -> None:
        """Let it run until it is so; fails, with what the writers and their routers say, where it does not come about."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert self._running is not None and not self._running.called, "all writers have ended"
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}; {self.seen()}"
            await deferLater(reactor, 0.01)

    def seen(self) -> str:
        """What became of the steps so far, and what the routers say."""
        problems = "; ".join(f"{sorted(router.problems)}" for router in self._routers)
        steps = f"{self.done.total()} steps done, rounds {dict(self._rounds)}, {self.busy} busy, {self.refused} refused"
        return f"{steps}, the last: {self.refusal or 'none'}; problems of the routers: {problems}"

    async def sums(self, router: Router) -> Counter[int]:
        """What the store says."""
        replies = await router.read_many({bucket: [(b"GET", prefix_of(bucket) + b"sum")] for bucket in self._buckets})
        return Counter({bucket: int(reply or 0) for bucket, (reply,) in replies.items()})

    async def _write(self, router: Router, name: str) -> None:
        step = 0
        self._rounds[name] = 0
        while self._is_running:
            step += 1
            for bucket in self._buckets:
                await self._alone(router, bucket, name, step)
                if self._rest:
                    await deferLater(reactor, self._rest)
            self._rounds[name] += 1

    async def _alone(self, router: Router, bucket: int, name: str, step: int) -> None:
        began = time.monotonic()
        while not self._is_cancelled:
            try:
                await self._step(router, bucket, name, step)
                self.done[bucket] += 1
                break
            except BucketBusy:
                self.busy += 1
                await deferLater(reactor, 0.01)
            except StoreUnavailable as error:
                self.refused, self.refusal = self.refused + 1, str(error)
                await deferLater(reactor, 0.01)
        self.longest = max(self.longest, time.monotonic() - began)

    async def _step(self, router: Router, bucket: int, name: str, step: int) -> None:
        await router.transact(bucket, *self._counting(bucket, name, step))

    def _counting(self, bucket: int, name: str, step: int) -> tuple[list[Command], Callable[[list[Any]], Writes]]:
        """Reads and update of a step."""
        total_key, mark_key = prefix_of(bucket) + b"sum", prefix_of(bucket) + f"mark:{name}".encode()

        def update(replies: list[Any]) -> Writes:
            total, mark = int(replies[0] or 0), int(replies[1] or 0)
            if mark >= step:
                return Writes([])
            missing = step - mark  # more than one: acknowledged steps are gone; the writer brings them back
            self.gaps += missing - 1
            # a new key in each: what is not there yet is what makes a slot's move hard
            extra = prefix_of(bucket) + f"new:{name}:{step % 20}".encode()
            writes = [(b"SET", total_key, b"%d" % (total + missing)), (b"SET", mark_key, b"%d" % step)]
            return Writes([*writes, (b"SET", extra, b"x", b"PX", b"500")])

        return [(b"GET", total_key), (b"GET", mark_key)], update


class JointLoad(Load):
    """Likewise, each step in all buckets by one transaction; who is not in it goes on alone. `strike` is awaited once in the middle of one,
    between its reads and its writes."""

    strike: Callable[[], Awaitable[Any]] | None = None
    joined = 0  # steps that were done in one transaction with others

    async def _write(self, router: Router, name: str) -> None:
        step = 0
        self._rounds[name] = 0
        while self._is_running:
            step += 1
            work = {bucket: self._counting(bucket, name, step) for bucket in self._buckets}

            async def update(replies: dict[int, list[Any]], work: Any = work) -> dict[int, Writes]:
                strike, self.strike = self.strike, None
                if strike is not None:
                    await strike()
                return {bucket: work[bucket][1](own) for bucket, own in replies.items()}

            try:
                together = await router.transact_many({bucket: reads for bucket, (reads, _) in work.items()}, update)
            except StoreUnavailable as error:
                together = {}
                self.refused, self.refusal = self.refused + 1, str(error)
            self.joined += len(together)
            self.done.update(together.keys())
            for bucket in work.keys() - together.keys():
                await self._alone(router, bucket, name, step)
            self._rounds[name] += 1
