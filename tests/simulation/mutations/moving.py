"""Mutations of moves of buckets, and of what others do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import attrs

from taba.errors import StoreUnavailable
from taba.shard import atlas, buckets, together, transaction
from taba.shard.moving import check, copying, mending, move, mover, reshard, steps
from tests.simulation.mutations.listing import MOVING, STORE, beside, focused


@focused(MOVING, 40.0, 1.0, seed=41)
def writers_note_nothing_of_what_they_write(put: Any) -> None:
    put(transaction, "is_moving", lambda content: False)
    put(together, "is_moving", lambda content: False)


@focused(MOVING, seed=11)
def what_was_noted_is_not_copied_again_and_nothing_compared(put: Any) -> None:
    def nothing(self: Any, *_: Any) -> Iterator[Any]:
        return iter(())

    put(copying.Copy, "noted", nothing)
    put(copying.Copy, "compare_all", nothing)
    put(copying.Copy, "compare_sealed", nothing)


@focused(MOVING, seed=2)
def a_sealed_bucket_and_one_that_left_are_written(put: Any) -> None:
    real = atlas.Atlas.check_owner

    def look(self: Any, bucket: int, name: str, reply: Any, where: str) -> None:
        try:
            real(self, bucket, name, reply, where)
        except atlas.NotHere:
            if not isinstance(reply, bytes) or not reply.startswith((b"sealed", b"moved")):
                raise

    put(atlas.Atlas, "check_owner", look)


@focused(MOVING, 40.0, 1.0, seed=19)
def a_bucket_that_leaves_a_joint_transaction_is_written_all_the_same(put: Any) -> None:
    real = together.SharedTransaction._watch

    async def watch(self: Any, connection: Any) -> Any:
        atlas, self._atlas = self._atlas, _Anywhere(self._atlas)
        try:
            return await real(self, connection)
        finally:
            self._atlas = atlas

    put(together.SharedTransaction, "_watch", watch)


class _Anywhere:
    """An atlas for which each bucket is wherever it once was."""

    def __init__(self, atlas: Any):
        self.counts = atlas.counts

    def are_open(self, map: Any, buckets: Any, replies: Any) -> bool:
        return False  # each is looked at below

    def check_owner(self, bucket: int, name: str, reply: Any, where: str) -> None:
        if reply is None:
            raise atlas.NotHere(bucket, False, "nowhere")


@focused("buckets move,store late", 20.0, 2.0, seed=182)
def the_guards_of_a_joint_transaction_are_read_and_not_watched(put: Any) -> None:
    real = together.SharedTransaction._watch

    async def watch(self: Any, connection: Any) -> Any:
        return await real(self, cast(Any, _Unguarded(connection)))

    put(together.SharedTransaction, "_watch", watch)


class _Unguarded:
    """A connection on which no owner key and no lease is watched."""

    def __init__(self, connection: Any):
        self.where = connection.where
        self._connection = connection

    async def watch(self, keys: Any, reads: Any, seconds: float) -> Any:
        return await self._connection.watch([key for key in keys if not key.endswith((b":owner", b":lease"))], reads, seconds)


@focused(STORE + ",kill server,messages late,messages repeated", 40.0, 1.0, seed=323)
def nobody_minds_a_lease_of_others(put: Any) -> None:
    real = transaction.Attempt._check

    def check(self: Any, name: str, guards: Any, where: str) -> None:
        real(self, name, [guards[0], guards[1] if guards[1] == self.held else None], where)

    put(transaction.Attempt, "_check", check)


@focused("buckets move,mover naps", 60.0, 1.5, seed=12)
def a_map_is_published_with_an_old_epoch(put: Any) -> None:
    def with_owner(map: Any, bucket: int, name: str, epoch: int) -> Any:
        before = map.epochs[bucket]
        lower = attrs.evolve(map, epochs=(*map.epochs[:bucket], min(before, max(1, epoch - 1)), *map.epochs[bucket + 1 :]))
        wanted = buckets.with_owner(lower, bucket, name, epoch)
        return map if wanted == lower or epoch == before else wanted

    put(mover, "with_owner", with_owner)


@focused("buckets move,mover naps,store dies", 60.0, 1.5, seed=7)
def an_undo_does_without_a_target_that_is_away(put: Any) -> None:
    real = move.undo

    def undo(bucket: int, source: str) -> Any:
        moving = real(bucket, source)
        answer = yield next(moving)
        while True:
            try:
                request = moving.send(answer)
            except StopIteration as stop:
                return stop.value
            try:
                answer = yield request
            except StoreUnavailable:
                if not isinstance(request, steps.Look):
                    raise
                answer = steps.Seen(None)

    for where in (mending, reshard, check):
        put(where, "undo", undo)


@beside("tests.shard.test_undo.Undoing.test_whenever_its_mover_wakes_the_bucket_is_open_once")
def an_undo_opens_the_source_first(put: Any) -> None:
    def undo(bucket: int, source: str, target: str, here: Any, arriving: Any, epoch: int) -> Any:
        yield from move._reopen(bucket, source, [here], epoch)
        if arriving is not None:
            yield from move._change(bucket, "disown", target, arriving, None)
            yield from move._clear(bucket, target)

    put(move, "_undo", undo)


@beside("tests.shard.test_undo.AnotherServer.test_a_move_begins_anew_where_a_shard_is_another_server_than_it_met_first")
def a_server_that_changed_in_a_move_is_not_noticed(put: Any) -> None:
    put(mover.Mover, "_meet", lambda self, *_: None)


@focused("buckets move,store fails over,replica lags", 40.0, 1.5, seed=61)
def a_seal_is_not_awaited(put: Any) -> None:
    real = move._step

    def step(bucket: int, name: str, shard: str, before: Any, after: Any, *commands: Any, confirms: bool = False) -> Any:
        return real(bucket, name, shard, before, after, *commands, confirms=confirms and name != "seal")

    put(move, "_step", step)


@focused("buckets move,store fails over,replica lags", 40.0, 1.5, seed=1)
def nothing_of_a_move_is_awaited(put: Any) -> None:
    async def confirm(self: Any, *_: Any) -> str:
        return ""

    put(mover.Mover, "_confirm", confirm)


# of a mover that stands still between its look at the map and its first step, while another drains the shard
@beside("tests.shard.test_maps.DrainedTests.test_nothing_goes_to_it_whatever_the_mover_knew_and_whichever_shard_alone_says_so")
def a_bucket_arrives_where_it_is_drained(put: Any) -> None:
    put(mover, "_takes_buckets", lambda shard, maps: True)
