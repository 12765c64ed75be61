"""Whether the store takes writes: each shard is asked again and again by a write that leaves nothing behind.

Reads say nothing of it: a store that is full, a replica, a primary that lost its replicas and one whose disk is full all answer them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taba.errors import StoreUnavailable, TabaError
from taba.server import keys
from taba.shard import BucketBusy, NotReplicated, Router, Writes
from taba.shard.servers.gather import gather

LOOK_SECONDS = 2.0  # between two looks at all shards
SETTLED_SECONDS = 60.0  # between two looks at what seldom changes: the map, and what servers say of their settings
WRITE_SECONDS = 1.5  # for a shard to take a write; Agents wait for a verdict about as long

CURES: Mapping[str, str] = {
    "OOM": "it has reached its memory bound: raise maxmemory, or add a shard (taba reshard --add)",
    "NOREPLICAS": "it has fewer good replicas than min-replicas-to-write: bring them back, or lower that",
    "READONLY": "it is a replica: name its primary in --store, or make it one (REPLICAOF NO ONE)",
    "MISCONF": "it cannot write to its disk: make room there, and look at its log",
    "NOPERM": "its user may not write: correct that user's rights (ACL SETUSER)",
    "LOADING": "it is reading its data after a start: that passes",
}

log = Logger()


class Health:
    """Looks at all shards. `problems` are sentences on those that take no writes now."""

    def __init__(self, router: Router, clock: Any):
        self._router, self._clock = router, clock
        self._looked = clock.seconds()  # at what seldom changes
        self._refusals: dict[str, str] = {}
        self.is_stopped = False
        self._looking: Deferred[None] | None = None
        self._calls = LoopingCall(self._begin)
        self._calls.clock = clock

    @property
    def problems(self) -> list[str]:
        """What is wrong, and its cure."""
        return list(self._refusals.values())

    @property
    def is_working(self) -> bool:
        """At least one shard is there and takes writes, as far as is known: there this Server can do its work."""
        return any(name not in self._refusals for name in self._reached())

    def start(self) -> None:
        """Look from now on."""
        self._calls.start(LOOK_SECONDS)

    def stop(self) -> None:
        """Look no more: the Server stops, and is not ready any more."""
        self.is_stopped = True
        if self._calls.running:
            self._calls.stop()
        if self._looking is not None:
            self._looking.cancel()

    def _begin(self) -> Deferred[None]:
        self._looking = ensureDeferred(self._look())
        return self._looking

    async def _look(self) -> None:
        try:
            await self.look()
            if self._clock.seconds() - self._looked >= SETTLED_SECONDS:
                self._looked = self._clock.seconds()
                await self._router.look()
        except CancelledError:
            log.debug("nobody looks at the shards any more")
        except Exception:
            log.failure("could not look whether the store takes writes")  # looked at again in a moment

    async def look(self) -> None:
        """Ask each shard that has buckets and is connected; one that is away is a problem of the Router's."""
        first = self._reached()
        # all at once: one that does not answer is waited for, and the others' news is not held up by it
        answers = await gather([self._refusal(bucket) for bucket in first.values()])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        self._refusals = {
            name: f"shard {name} takes no writes, and events wait at their Agents: {refusal}"
            for name, refusal in zip(first, answers, strict=True)
            if refusal is not None
        }

    def _reached(self) -> dict[str, int]:
        """The shards that have buckets and are connected, and one bucket of each."""
        map = self._router.atlas.known
        owned = {} if map is None else {shard.name: map.owned_by(shard.name) for shard in map.shards}
        return {name: buckets[0] for name, buckets in owned.items() if buckets and self._router.reaches(buckets[0])}

    async def _refusal(self, bucket: int) -> str | None:
        key = keys.trial(bucket)
        write = Writes([(b"SET", key, b"1"), (b"DEL", key)])
        try:
            await self._router.transact(bucket, [], lambda _: write, WRITE_SECONDS)
        except (BucketBusy, NotReplicated) as error:
            log.debug("bucket {bucket}: {error}", bucket=bucket, error=error)  # it takes writes: others', or ours
        except (StoreUnavailable, TabaError) as error:
            return with_cure(str(error))
        return None


def with_cure(reason: str) -> str:
    """What a store said, and what helps where that is known."""
    for word, cure in CURES.items():
        if f"{word} " in f"{reason} ":
            return f"{cure} ({reason})"[:500]
    return reason[:300]
