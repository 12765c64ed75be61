"""Moving one bucket from shard to shard while it is written and read; or finishing, or undoing, what another began. Pure.

    target: (nothing) → arriving ──────────────────────────────────────────────▶ open
    source: open ────────────────▶ open, moving ──────────▶ sealed ─────────────────────▶ (map published) ──▶ leaving ──▶ removing ──▶ moved
                                   copy · copy again · compare   the rest · compare that                                 unlink

`states` has the table. What follows from it:

1. Every step compares the owner key of its shard with what this move left there: whoever was overtaken can do nothing.
2. Whoever takes over writes at the target first, then at the source: so when the source changes hands or opens again,
   the earlier mover's target can no more be opened.
3. An open target is only finished, never undone; before, undoing is always safe, because nobody read or wrote there.
4. Whoever takes over copies from the start, under a new token and a higher epoch: nothing that was left half-done is
   trusted, and what an earlier mover publishes late is old.
5. The source's keys go last, once the target is durable wherever a failover may lead.
6. A target that has lost the bucket nevertheless, before any key of it is removed, gives it back: it opens at the source again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from taba.errors import StoreUnavailable
from taba.plural import many
from taba.shard.buckets import MalformedMap, Owner, decode_owner, dirty_key, encode_owner, lots, owner_key, target_of
from taba.shard.dirty import Command
from taba.shard.moving.copying import Copy, Differs
from taba.shard.moving.states import change
from taba.shard.moving.steps import (
    UNLINKED_KEYS,
    Done,
    Everywhere,
    Look,
    LookEverywhere,
    MoveFailed,
    Occupied,
    Outpaced,
    Overtaken,
    Publish,
    Scan,
    Seen,
    Step,
    Steps,
    is_content,
)
from taba.shard.servers.connection import TransactionRefused

SEAL_NOTES = 100  # so few notes left, and the rest is copied under the seal: some milliseconds
SEALED_NOTES = 3000  # so many at the most where writers are as fast as the mover: some tens of milliseconds
FEW_ROUNDS = 4  # in which the notes that are left must have become fewer at least once
MOST_ROUNDS = 60
MOST_CONFIRMATIONS = 10  # of an open target, each as long as a shard may take


class Moved(NamedTuple):
    """What became of it: `how` is moved, finished, undone, or nothing; `bytes` were copied, `keys` are in the bucket."""

    bucket: int
    how: str
    bytes: int = 0
    keys: int = 0


Moving = Generator[Any, Any, Moved]


def move(bucket: int, source: str, target: str, token: str) -> Moving:
    """Move `bucket` to `target`, or finish that where another has begun it. `token` was never used before.

    Raises Occupied when a living mover has it in hand, Overtaken when one takes it over or the bucket is not at `source`
    any more, MoveFailed (after which the bucket is open at the source). StoreUnavailable is thrown in where a shard does
    not answer: until the target may be open, the bucket is opened again at the source then, if that can be reached.
    """
    there: Seen = yield Look(target)
    here: Seen = yield Look(source)
    at_target, at_source = _decode(bucket, there.content), _decode(bucket, here.content)
    if at_target is not None and at_target.state == "open":
        return (yield from _finish(bucket, source, target, there, here))
    if at_target is not None and at_target.state == "sealed":
        raise Overtaken(f"bucket {bucket}: it is on its way from {target}")
    if at_source is None or at_source.state not in ("open", "sealed"):
        raise Overtaken(f"bucket {bucket}: not at {source} any more")
    if (at_source.token and here.is_alive) or (at_target is not None and at_target.token and there.is_alive):
        raise Occupied(f"bucket {bucket}: another mover has it in hand")
    if at_source.token and target_of(at_source.token) != target:
        yield from _dispossess(bucket, target_of(at_source.token), at_source.token)
    # whoever takes over is beyond the epoch that the earlier one may have published
    epoch = at_source.epoch + 1 if at_source.token else at_source.epoch
    if at_target is not None:
        epoch = max(epoch, at_target.epoch)
    arriving = Owner("arriving", epoch + 1, token)
    moving = Owner("open", epoch, source, token)
    sealed = Owner("sealed", epoch, token)
    opened = Owner("open", epoch + 1, target)
    yield from _change(bucket, "arrive", target, at_target, arriving)
    yield from _change(bucket, "begin", source, at_source, moving, (b"DEL", dirty_key(bucket)))
    standing = [moving]  # what may stand at the source
    copy = Copy(bucket, source, target, token, encode_owner(moving), encode_owner(arriving))
    try:
        keys: dict[str, list[bytes]] = yield Scan((source, target))
        for lot in lots(keys[target], UNLINKED_KEYS):
            yield from _require(bucket, Step("clear", target, encode_owner(arriving), [(b"UNLINK", *lot)]))
        yield from copy.keys(keys[source])
        # a replica that lags, or a slow disk, is better met before the seal than under it
        yield from _confirmed(bucket, Step("ready", source, encode_owner(moving), [], confirms=True), "does not keep what it is told")
        yield from _converge(copy)
        yield from copy.compare_all()
        yield from _converge(copy)
        copy.judge()
        standing = [sealed, moving]
        done: Done = yield _step(bucket, "seal", source, moving, sealed, confirms=True)
        _check(bucket, done)
        copy.here = encode_owner(sealed)
        if done.problem:
            raise MoveFailed(f"shard {source} does not keep its seal: {done.problem}")
        left = 1
        while left:
            taken = yield from copy.take()
            yield from copy.noted(taken.notes)
            left = taken.left
        yield from copy.compare_sealed()
        yield from _confirmed(bucket, Step("staged", target, encode_owner(arriving), [], confirms=True), "does not keep what it is told")
    except (Differs, MoveFailed, StoreUnavailable, TransactionRefused) as error:
        # the source first: we have not opened the target, and nobody else may who has not written here before
        yield from _reopen(bucket, source, standing, epoch + 2)
        try:
            yield from _change(bucket, "disown", target, arriving, None)
            yield from _clear(bucket, target)
        except (StoreUnavailable, TransactionRefused) as left:
            error = MoveFailed(f"{error}; what was copied is still on {target} ({left}): taba reshard --abort removes it")
        raise (Outpaced if isinstance(error, Outpaced) else MoveFailed)(f"bucket {bucket}: {error}") from None
    yield from _change(bucket, "open", target, arriving, opened, *copy.opening)
    yield Publish(target, opened.epoch)
    yield from _confirm(bucket, target, encode_owner(opened))
    how = yield from _leave(bucket, source, target, sealed, opened, keys[source] + list(copy.kinds), "moved")
    return Moved(bucket, how, copy.bytes, len(copy.kinds))


def undo(bucket: int, source: str) -> Moving:
    """Undo a move of `bucket` away from `source` that is under way; finish it where its target is open, or was and has lost it."""
    here: Seen = yield Look(source)
    at_source = _decode(bucket, here.content)
    if at_source is not None and at_source.state == "moved":
        return (yield from tidy(bucket, source))
    if at_source is None or at_source.state not in ("open", "sealed") or not at_source.token:
        return Moved(bucket, "nothing")
    if here.is_alive:
        raise Occupied(f"bucket {bucket}: another mover has it in hand; stop that one first")
    target = target_of(at_source.token)
    there: Seen = yield Look(target)
    at_target = _decode(bucket, there.content)
    if at_target is not None and at_target.state == "open":
        return (yield from _finish(bucket, source, target, there, here))
    arriving = at_target if at_target is not None and at_target.token == at_source.token else None
    yield from _undo(bucket, source, target, at_source, arriving, at_source.epoch + 2)
    return Moved(bucket, "undone")


def undo_anywhere(bucket: int) -> Moving:
    """`undo`, wherever the bucket is to have left from."""
    found: Everywhere = yield LookEverywhere()
    for shard, seen in found.seen.items():
        owner = _decode(bucket, seen.content)
        if owner is not None and owner.token and owner.state != "arriving":
            return (yield from undo(bucket, shard))
    return Moved(bucket, "nothing")


def forget(bucket: int, target: str) -> Moving:
    """Remove what a move that never marked its source has left at its `target`."""
    there: Seen = yield Look(target)
    at_target = _decode(bucket, there.content)
    if at_target is None or at_target.state != "arriving":
        return Moved(bucket, "nothing")
    if there.is_alive:
        raise Occupied(f"bucket {bucket}: another mover has it in hand; stop that one first")
    yield from _change(bucket, "disown", target, at_target, None)
    yield from _clear(bucket, target)
    return Moved(bucket, "undone")


# --- the parts that these share ---


def _converge(copy: Copy) -> Steps:
    """Copy what is noted until so little is left that the seal is short; MoveFailed when writers are faster than the mover.

    By construction it ends: each round either leaves fewer notes than any before it, or is one of few that do not.
    """
    fewest, rounds_without = 0, 0
    for number in range(MOST_ROUNDS):
        left = yield from copy.drain()
        if left <= SEAL_NOTES:
            return
        if number == 0 or left < fewest * 0.9:
            fewest, rounds_without = left, 0
        else:
            rounds_without += 1
        if rounds_without >= FEW_ROUNDS:
            break
    if left > SEALED_NOTES:
        raise Outpaced(
            f"what is written while it is copied grows as fast as it is copied ({many(left, 'note')} left): "
            "it was opened again where it was; move it when less is written"
        )


def _finish(bucket: int, source: str, target: str, there: Seen, here: Seen) -> Moving:
    """The target is open: what is missing is the map, and the end of the source."""
    at_target, at_source = _decode(bucket, there.content), _decode(bucket, here.content)
    assert at_target is not None
    if at_source is not None and at_source.state == "open":
        raise MoveFailed(f"bucket {bucket}: open on both {source} and {target}: taba check --repair keeps the one that moved last")
    yield Publish(target, at_target.epoch)
    if at_source is None or at_source.state != "sealed" or target_of(at_source.token) != target:
        return Moved(bucket, "nothing")
    yield from _confirm(bucket, target, encode_owner(at_target))
    keys: dict[str, list[bytes]] = yield Scan((source,))
    return Moved(bucket, (yield from _leave(bucket, source, target, at_source, at_target, keys[source], "finished")))


def tidy(bucket: int, source: str) -> Moving:
    """Remove what a move that ended at its target has left at its `source`; or open it there again, if the target has lost it."""
    here: Seen = yield Look(source)
    at_source = _decode(bucket, here.content)
    if at_source is None or at_source.state != "moved" or not at_source.moving:
        return Moved(bucket, "nothing")
    if here.is_alive:
        raise Occupied(f"bucket {bucket}: another mover has it in hand; stop that one first")
    return Moved(bucket, (yield from _settle(bucket, source, at_source, None, "finished")))


def _leave(bucket: int, source: str, target: str, sealed: Owner, opened: Owner, keys: list[bytes], how: str) -> Generator[Any, Any, str]:
    leaving = Owner("moved", opened.epoch, target, sealed.token)
    yield from _change(bucket, "leave", source, sealed, leaving, (b"DEL", dirty_key(bucket)))
    return (yield from _settle(bucket, source, leaving, keys, how))


def _settle(bucket: int, source: str, leaving: Owner, keys: list[bytes] | None, how: str) -> Generator[Any, Any, str]:
    """Remove `keys` at the source (None: whatever is there), and say `how`; or open it again, if its target has lost it, and say undone.

    Asked again first: whatever failed over meanwhile, what is removed here is there.
    """
    there: Seen = yield Look(leaving.name)
    at_target = _decode(bucket, there.content)
    if at_target is not None and at_target.state == "open" and at_target.epoch >= leaving.epoch:
        yield from _confirm(bucket, leaving.name, encode_owner(at_target))
    elif (yield from _is_lost(bucket, at_target, leaving)):
        yield from _return(bucket, source, at_target, leaving)
        return "undone"
    removing = leaving._replace(is_removing=True)
    if not leaving.is_removing:
        yield from _change(bucket, "remove", source, leaving, removing)
    if keys is None:
        found: dict[str, list[bytes]] = yield Scan((source,))
        keys = found[source]
    for lot in lots(list(dict.fromkeys(keys)), UNLINKED_KEYS):
        yield from _require(bucket, Step("unlink", source, encode_owner(removing), [(b"UNLINK", *lot)]))
    yield from _change(bucket, "left", source, removing, removing._replace(moving="", is_removing=False))
    return how


def _is_lost(bucket: int, at_target: Owner | None, leaving: Owner) -> Generator[Any, Any, bool]:
    """Whether no shard has the bucket since it left; else it went on from where it went to, and was whole then."""
    if at_target is not None and at_target.state == "sealed" and at_target.epoch >= leaving.epoch:
        return False
    found: Everywhere = yield LookEverywhere()
    owners = [_decode(bucket, seen.content) for seen in found.seen.values()]
    return found.epoch <= leaving.epoch and all(owner is None or owner.epoch <= leaving.epoch for owner in owners)


def _return(bucket: int, source: str, at_target: Owner | None, leaving: Owner) -> Steps:
    """Open the bucket again where it was: all of it is there, and a failover took it from its target. Then it may move anew."""
    target = leaving.name
    if leaving.is_removing:
        raise MoveFailed(f"bucket {bucket}: shard {target} has lost it, and {source} has removed a part of it: taba check --repair")
    if at_target is not None and at_target.state == "arriving":
        yield from _change(bucket, "disown", target, at_target, None)
        at_target = None
    if at_target is not None and at_target.state == "open":
        raise MoveFailed(f"bucket {bucket}: shard {target} has it as it was long ago, and {source} all of it: taba check --repair")
    # none of the target's replicas may have it open again, if it is promoted
    gone = None if at_target is None else encode_owner(at_target)
    yield from _confirmed(bucket, Step("lost", target, gone, [], confirms=True), "does not confirm that it has lost the bucket")
    yield from _change(bucket, "return", source, leaving, Owner("open", leaving.epoch + 2, source))
    yield Publish(source, leaving.epoch + 2)
    yield from _clear(bucket, target, gone)


def _confirm(bucket: int, target: str, opened: bytes) -> Steps:
    """Wait until the target keeps what it has: only then may the source's copy go."""
    for _ in range(MOST_CONFIRMATIONS):
        done: Done = yield Step("confirm", target, opened, [], confirms=True)
        _check(bucket, done)
        if not done.problem:
            return
    raise MoveFailed(f"bucket {bucket}: shard {target} has it, and does not confirm that it keeps it: {done.problem}; come again")


def _confirmed(bucket: int, step: Step, what: str) -> Steps:
    done: Done = yield step
    _check(bucket, done)
    if done.problem:
        raise MoveFailed(f"shard {step.shard} {what}: {done.problem}")


def _undo(bucket: int, source: str, target: str, here: Owner, arriving: Owner | None, epoch: int) -> Steps:
    if arriving is not None:
        # the target first: the move that is undone cannot open it any more
        yield from _change(bucket, "disown", target, arriving, None)
    yield from _reopen(bucket, source, [here], epoch)
    if arriving is not None:
        yield from _clear(bucket, target)


def _reopen(bucket: int, source: str, standing: Sequence[Owner], epoch: int) -> Steps:
    """Open the bucket at the source again, where one of `standing` is what its owner key says."""
    for here in standing:
        done: Done = yield _step(bucket, "reopen", source, here, Owner("open", epoch, source), (b"DEL", dirty_key(bucket)))
        if done.replies is not None:
            yield Publish(source, epoch)  # so that what is undone here, published late, is old
            return
    raise Overtaken(f"bucket {bucket}: another has this move in hand")


def _clear(bucket: int, target: str, says: bytes | None = None) -> Steps:
    """Remove all of the bucket at the target, whose owner key `says` that it does not have it."""
    keys: dict[str, list[bytes]] = yield Scan((target,))
    for lot in lots(keys[target], UNLINKED_KEYS):
        yield from _require(bucket, Step("clear", target, says, [(b"UNLINK", *lot)]))


def _dispossess(bucket: int, target: str, token: str) -> Steps:
    """Make sure that the earlier move with `token`, to another target, cannot open it any more."""
    there: Seen = yield Look(target)
    owner = _decode(bucket, there.content)
    if owner is not None and owner.state == "open":
        raise Overtaken(f"bucket {bucket}: shard {target} has it open; that move is to be finished first")
    if owner is not None and owner.token == token:
        yield from _change(bucket, "disown", target, owner, None)
        yield from _clear(bucket, target)


def _step(
    bucket: int, name: str, shard: str, before: Owner | None, after: Owner | None, *commands: Command, confirms: bool = False
) -> Step:
    """The step that changes an owner key: `before` stood there, `after` does then."""
    change(name, before, after)
    own: Command = (b"DEL", owner_key(bucket)) if after is None else (b"SET", owner_key(bucket), encode_owner(after))
    goes_to = target_of(after.token) if name in ("arrive", "begin") and after is not None else ""
    return Step(name, shard, None if before is None else encode_owner(before), [*commands, own], confirms=confirms, goes_to=goes_to)


def _change(bucket: int, name: str, shard: str, before: Owner | None, after: Owner | None, *commands: Command) -> Steps:
    yield from _require(bucket, _step(bucket, name, shard, before, after, *commands))


def _require(bucket: int, step: Step) -> Steps:
    _check(bucket, (yield step))


def _check(bucket: int, done: Done) -> None:
    if done.replies is None:
        raise Overtaken(f"bucket {bucket}: another has this move in hand")


def _decode(bucket: int, content: bytes | None) -> Owner | None:
    if content is None:
        return None
    try:
        return decode_owner(content)
    except MalformedMap as error:
        raise MoveFailed(f"bucket {bucket}: {error}; taba check --repair says what to do") from None


__all__ = ["Moved", "Moving", "forget", "is_content", "move", "tidy", "undo", "undo_anywhere"]
