"""Locks that several processes hold one at a time, with fencing tokens.

A lock is lost when its time is over, whoever still believes to hold it: a process that was stopped, or cut off, cannot
know. So each holder gets a `fence`, a number greater than that of every holder before; what the lock protects remembers
the greatest that it has seen and refuses smaller ones. The number is kept in the store, beside the lock, for ever.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable, TabaError
from taba.shard.buckets import prefix_of
from taba.shard.operations import Operations, Text, bucket_of, plain_name
from taba.shard.servers.connection import Command
from taba.shard.transaction import Writes

MIN_TTL_SECONDS = 0.01
MAX_TTL_SECONDS = 86_400.0  # a holder that died holds up the others for so long
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
        if not MIN_TTL_SECONDS <= ttl <= MAX_TTL_SECONDS:
            raise ValueError(f"a ttl takes {MIN_TTL_SECONDS} to {MAX_TTL_SECONDS:g} seconds, not {ttl}")
        self.name = plain_name(name)
        self.ttl = ttl
        self.fence = 0
        self._router, self._wait, self._reactor, self._random = router, wait, reactor, random
        self._token = b""
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
            fence = await self._try(token)
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
        _, lock_key, _ = self._keys()
        began = await self._change((b"PEXPIRE", lock_key, self._milliseconds()))
        if began is None:
            raise LockLost(f"lock {self.name!r}: lost before it was extended")
        self._ends = began + self.ttl

    async def release(self) -> None:
        """Give it back. Raises LockLost when it was not ours any more; another holder's stays."""
        _, lock_key, _ = self._keys()
        began = await self._change((b"DEL", lock_key))
        self._token = b""
        if began is None:
            raise LockLost(f"lock {self.name!r}: lost before it was given back")

    async def __aenter__(self) -> Lock:
        await self.acquire()
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        try:
            await self.release()
        except StoreUnavailable:
            self._router.counts["locks_left"] += 1  # its time ends it
        except LockLost:
            if kind is None:
                raise

    # --- in the store ---

    def _milliseconds(self) -> bytes:
        return b"%d" % round(self.ttl * 1000)

    def _keys(self) -> tuple[int, bytes, bytes]:
        bucket = bucket_of(self.name, self._router.buckets)
        return bucket, prefix_of(bucket) + b"lock:" + self.name, prefix_of(bucket) + b"fence:" + self.name

    async def _try(self, token: bytes) -> int:
        """The fence, or 0 while another holds it."""
        bucket, lock_key, fence_key = self._keys()

        def update(replies: list[Any]) -> Writes:
            held, last = replies[0], int(replies[1] or 0)
            if held == token:
                return Writes([], last)  # an earlier try, whose answer was lost; its time began then
            if held is not None:
                return Writes([], 0)
            self._ends = self._reactor.seconds() + self.ttl  # from before the store counts
            fence = b"%d" % (last + 1)
            return Writes([(b"SET", lock_key, token, b"PX", self._milliseconds()), (b"SET", fence_key, fence)], last + 1)

        return int(await self._router.transact_patiently(bucket, [(b"GET", lock_key), (b"GET", fence_key)], update))

    async def _change(self, command: Command) -> float | None:
        """Do `command` if the lock is ours; when we sent that, by our clock, or None where it was not ours."""
        bucket, lock_key, _ = self._keys()
        token, ends = self._token, self._ends
        sent: float | None = None

        def update(replies: list[Any]) -> Writes:
            nonlocal sent
            now = self._reactor.seconds()
            if replies[0] == token:
                sent = now
                return Writes([command], now)
            # with time left it was our own earlier try, whose answer was lost, that gave it back
            return Writes([], sent if command[0] == b"DEL" and now < ends else None)

        began: float | None = await self._router.transact_patiently(bucket, [(b"GET", lock_key)], update) if token else None
        return began
