"""Locks that several processes hold one at a time, with fencing tokens.

1. No clock of a server is asked. A holder counts its time by its own monotonic clock; another process may replace a lock
   that it saw unchanged, by its own, for as long as the lock says that it lives. Each extension changes it.
2. A lock is lost when its time is over, whoever still believes to hold it: a process that was stopped, or cut off, cannot
   know. So each holder gets a `fence`, a number greater than that of every holder before; what the lock protects
   remembers the greatest that it has seen and refuses smaller ones. The number is kept in the store, for ever.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable, TabaError
from taba.shard.buckets import prefix_of
from taba.shard.keys.amounts import fraction
from taba.shard.keys.places import Text, bucket_of, plain_name
from taba.shard.operations import Operations
from taba.shard.transaction import NotReplicated, Writes

MIN_TTL_SECONDS = 0.01
MAX_TTL_SECONDS = 86_400.0  # a holder that died holds up the others for so long, from when they first look
FIRST_PAUSE_SECONDS = 0.02  # between looks at a lock that another holds; doubled, jittered …
LAST_PAUSE_SECONDS = 0.5  # … up to this


class LockHeld(TabaError):
    """Another holds this lock, and went on to for as long as we would wait."""


class LockLost(TabaError):
    """The time of this lock was over, or somebody removed it: what was done since may have been done beside another holder."""


class Lock:
    """`async with router.lock("name", ttl=10) as lock:`; `lock.fence` goes along with what is written under it.

    Waits up to `wait` seconds for another holder, then LockHeld. Leaving the block raises LockLost when it was lost
    inside. A Lock is for one holder at a time; it may be taken again.
    """

    def __init__(self, router: Operations, name: Text, ttl: float, wait: float, reactor: Any, random: Random):
        self.name = plain_name(name)
        if not MIN_TTL_SECONDS <= fraction("a ttl", ttl) <= MAX_TTL_SECONDS:
            raise ValueError(f"a ttl takes {MIN_TTL_SECONDS} to {MAX_TTL_SECONDS:g} seconds, not {ttl}")
        fraction("a wait", wait)
        self.ttl = ttl
        self.fence = 0
        self._router, self._wait, self._reactor, self._random = router, wait, reactor, random
        self._token = b""
        self._changes = 0
        self._ends = 0.0

    @property
    def is_held(self) -> bool:
        """We took it and its time is not over. True may be wrong a moment later: that is what `fence` is for."""
        return bool(self._token) and self._reactor.seconds() < self._ends

    async def acquire(self) -> int:
        """Take it; its fence. Raises LockHeld, or StoreUnavailable when nobody can say who holds it."""
        deadline = self._reactor.seconds() + self._wait
        pause = FIRST_PAUSE_SECONDS
        token = os.urandom(16).hex().encode()
        while True:
            try:
                fence = await self._try(token)
            except NotReplicated:
                await self._leave(token)  # nobody would know that it is held
                raise
            if fence:
                self.fence, self._token = fence, token
                return fence
            seconds = pause * (0.5 + self._random.random())
            if self._reactor.seconds() + seconds >= deadline:
                raise LockHeld(f"lock {self.name!r}: another holds it")
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
            await deferLater(self._reactor, seconds)

    async def extend(self) -> None:
        """Begin its time anew. Raises LockLost when it is over already."""
        is_over = not self.is_held
        began = None if is_over else await self._change(self._token, self._content(self._token))
        if began is None:
            raise LockLost(f"lock {self.name!r}: lost before it was extended")
        self._ends = began + self.ttl

    async def release(self) -> None:
        """Give it back. Raises LockLost when it was not ours any more, or its time was over; another holder's stays."""
        is_over = not self.is_held
        began = await self._change(self._token, None)
        self._token = b""
        if began is None or is_over:
            raise LockLost(f"lock {self.name!r}: lost before it was given back")

    async def __aenter__(self) -> Lock:
        await self.acquire()
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        try:
            await self.release()
        except StoreUnavailable:
            self._router.counts["locks_left"] += 1  # whoever watches it sees that it stands still
        except LockLost:
            if kind is None:
                raise

    # --- in the store ---

    def _keys(self) -> tuple[int, bytes, bytes]:
        bucket = bucket_of(self.name, self._router.buckets)
        return bucket, prefix_of(bucket) + b"lock:" + self.name, prefix_of(bucket) + b"fence:" + self.name

    def _content(self, token: bytes) -> bytes:
        """What we write: whose it is, how long it lives unchanged, and a number that it never had."""
        self._changes += 1
        content = b"%b:%d:%d" % (token, round(self.ttl * 1000), self._changes)
        self._router.standing.seconds(("lock", self.name), content)  # what is left behind here, others here need not watch again
        return content

    def _is_abandoned(self, content: bytes) -> bool:
        _, _, rest = content.partition(b":")
        milliseconds = rest.partition(b":")[0]
        ttl = int(milliseconds) / 1000 if milliseconds.isdigit() and len(milliseconds) < 12 else MAX_TTL_SECONDS
        return self._router.standing.seconds(("lock", self.name), content) >= ttl

    async def _try(self, token: bytes) -> int:
        """The fence, or 0 while another holds it."""
        bucket, lock_key, fence_key = self._keys()

        def update(replies: list[Any]) -> Writes:
            held, last = replies[0], int(replies[1] or 0)
            if held is not None and _token_of(held) == token:
                return Writes([], last)  # an earlier try, whose answer was lost; its time began then
            if held is not None and not self._is_abandoned(held):
                return Writes([], 0)
            self._ends = self._reactor.seconds() + self.ttl  # from before anybody can see it
            return Writes([(b"SET", lock_key, self._content(token)), (b"SET", fence_key, b"%d" % (last + 1))], last + 1)

        return int(await self._router.transact_patiently(bucket, [(b"GET", lock_key), (b"GET", fence_key)], update))

    async def _leave(self, token: bytes) -> None:
        """Give back what we may have taken, and cannot say that we hold."""
        try:
            await self._change(token, None)
        except NotReplicated:
            pass  # it is done here; a replica that lacks it lacks the rest too
        except StoreUnavailable:
            self._router.counts["locks_left"] += 1  # whoever watches it sees that it stands still

    async def _change(self, token: bytes, content: bytes | None) -> float | None:
        """Have the lock say `content` (None: remove it) if it is ours; when we sent that, or None where it was not ours."""
        bucket, lock_key, _ = self._keys()
        sent: float | None = None

        def update(replies: list[Any]) -> Writes:
            nonlocal sent
            now = self._reactor.seconds()
            if replies[0] is not None and _token_of(replies[0]) == token:
                if replies[0] == content:
                    return Writes([], sent)  # an earlier try, whose answer was lost
                sent = now
                return Writes([(b"SET", lock_key, content) if content is not None else (b"DEL", lock_key)], now)
            # it may be our own earlier try, whose answer was lost, that gave it back
            return Writes([], sent if content is None else None)

        began: float | None = await self._router.transact_patiently(bucket, [(b"GET", lock_key)], update) if token else None
        return began


def _token_of(content: bytes) -> bytes:
    return content.partition(b":")[0]
