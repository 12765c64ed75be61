"""Whoever uses a store undoes what movers that died left behind: no bucket stays sealed until a person acts.

1. Only buckets that were met in a move are looked at, and a mover only counts as gone once its sign of life was seen
   unchanged for ten seconds, by our own clock.
2. Undoing is `undo`: the target first; one that cannot be asked leaves the seal, and a problem says so. A bucket that is
   open at its target is finished, never undone.
3. Many do this at once: to be overtaken by another is success.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.logger import Logger

from taba.errors import TabaError
from taba.plural import many
from taba.shard.atlas import Atlas
from taba.shard.moving.move import undo, undo_anywhere
from taba.shard.moving.mover import GROUP_BUCKETS, Factory, Mover
from taba.shard.moving.steps import Occupied, Overtaken
from taba.shard.servers.pool import Pool

LOOK_SECONDS = 2.0  # between looks at moves that were met
FEW_LOOKS = 8  # so often an attempt may fail before it is a problem: a shard that restarts is back by then

log = Logger()


class Mender:
    """Looks after the buckets that `atlas` met in a move, as long as there are any, until `stop`."""

    def __init__(self, atlas: Atlas):
        self._atlas = atlas
        self._failed: dict[int, tuple[int, str]] = {}  # bucket → how often, and why the last time
        self._next: Any = None
        self._is_looking = self._is_stopped = False
        atlas.on_in_hand = self._wake

    @property
    def problems(self) -> list[str]:
        """What could not be undone, in sentences."""
        standing = [why for times, why in self._failed.values() if times > FEW_LOOKS]
        if not standing:
            return []
        told = many(len(standing), "bucket is on its way, and nobody moves it", "buckets are on their way, and nobody moves them")
        return [f"{told}: {standing[0]}; taba check says more"]

    def stop(self) -> None:
        """Look no more."""
        self._is_stopped = True
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _wake(self) -> None:
        is_waiting = self._next is not None and self._next.active()
        if not is_waiting and not self._is_looking and not self._is_stopped:
            self._next = self._atlas.reactor.callLater(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._is_looking = True
        ensureDeferred(self._look_and_go_on()).addErrback(lambda failure: log.failure("moves cannot be looked after", failure=failure))

    async def _look_and_go_on(self) -> None:
        try:
            await self.look()
        finally:
            self._is_looking = False
            if self._atlas.in_hand:
                self._wake()

    async def look(self) -> None:
        """Look once."""
        atlas = self._atlas
        self._failed = {bucket: failed for bucket, failed in self._failed.items() if bucket in atlas.in_hand}
        if not atlas.in_hand or atlas.known is None:
            return
        pools: dict[str, Any] = {name: pool for name, pool in atlas.by_name.items() if isinstance(pool, Pool)}
        for bucket in [bucket for bucket, shard in atlas.in_hand.items() if shard and shard not in pools]:
            self._done(bucket)  # that shard has been drained meanwhile, and has nothing any more
        ending: dict[int, Factory] = {
            bucket: partial(undo, bucket, shard) if shard else partial(undo_anywhere, bucket)
            for bucket, shard in islice(list(atlas.in_hand.items()), GROUP_BUCKETS)
        }
        mover = Mover(pools, atlas.reactor, standing=atlas.standing, without_replicas=True)
        for bucket, answer in (await mover.run(ending)).items():
            if isinstance(answer, Occupied):
                self._failed.pop(bucket, None)
                self._others_first(bucket)
            elif isinstance(answer, Overtaken):
                self._done(bucket)
            elif isinstance(answer, TabaError):
                times, _ = self._failed.get(bucket, (0, ""))
                self._failed[bucket] = (times + 1, str(answer))
                self._others_first(bucket)
            elif isinstance(answer, Exception):
                log.error("bucket {bucket}: its move cannot be undone: {answer}", bucket=bucket, answer=answer)
                self._done(bucket)
            else:
                if answer.how != "nothing":
                    log.warn("bucket {bucket}: its mover gave no sign of life; its move is {how}", bucket=bucket, how=answer.how)
                    atlas.counts["mended"] += 1
                self._done(bucket)

    def _others_first(self, bucket: int) -> None:
        """What was looked at in vain comes again behind all others: a mover that lives may have many in hand, for long."""
        self._atlas.in_hand[bucket] = self._atlas.in_hand.pop(bucket)

    def _done(self, bucket: int) -> None:
        self._failed.pop(bucket, None)
        self._atlas.in_hand.pop(bucket, None)
