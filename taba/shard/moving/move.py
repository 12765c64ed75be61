"""Moving one bucket from shard to shard while it is written and read; or finishing, or undoing, what another began. Pure.

    target: (nothing) → arriving ───────────────────────────────────────▶ open
    source: open ────────────────▶ open, moving ──▶ sealed ─────────────────────▶ (map published) ──▶ moved
                                   copy · copy again   the rest · compare

1. Every step compares the owner key of its shard with what this move left there: whoever was overtaken can do nothing.
2. Whoever takes over writes at the target first, then at the source: so when the source changes hands or opens again,
   the earlier mover's target can no more be opened.
3. An open target is only finished, never undone; before, undoing is always safe, because nobody read or wrote there.
4. Whoever takes over copies from the start, under a new token: nothing that was left half-done is trusted.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from taba.shard.buckets import MalformedMap, Owner, decode_owner, dirty_key, encode_owner, lots, owner_key, target_of
from taba.shard.moving.copying import Copy, Differs
from taba.shard.moving.steps import (
    UNLINKED_KEYS,
    Command,
    Done,
    Look,
    MoveFailed,
    Occupied,
    Overtaken,
    Publish,
    Scan,
    Seen,
    Step,
    Steps,
    is_content,
)

SEAL_NOTES = 100  # so few notes left, and the rest is copied under the seal: some milliseconds
MOST_TAKES = 200  # then it is sealed with what is left: writers are as fast as the mover
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
    any more, MoveFailed (after which the bucket is open at the source).
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
    assert here.content is not None
    if at_source.token and target_of(at_source.token) != target:
        yield from _dispossess(bucket, target_of(at_source.token), at_source.token)
    epoch = at_source.epoch
    arriving = encode_owner(Owner("arriving", epoch + 1, token))
    moving = encode_owner(Owner("open", epoch, source, token))
    sealed = encode_owner(Owner("sealed", epoch, token))
    # the target first: from here on, whoever had this move cannot open it
    yield from _require(bucket, Step("arrive", target, there.content, [_own(bucket, arriving)]))
    yield from _require(bucket, Step("begin", source, here.content, [_own(bucket, moving), (b"DEL", dirty_key(bucket))]))
    keys: dict[str, list[bytes]] = yield Scan((source, target))
    for lot in lots(keys[target], UNLINKED_KEYS):
        yield from _require(bucket, Step("clear", target, arriving, [(b"UNLINK", *lot)]))
    copy = Copy(bucket, source, target, token, moving, arriving)
    opened_again = encode_owner(Owner("open", epoch, source))
    try:
        yield from copy.keys(keys[source])
        # a replica that lags, or a slow disk, is better met before the seal than under it
        done: Done = yield Step("ready", source, moving, [], confirms=True)
        _check(bucket, done)
        if done.problem:
            raise MoveFailed(f"shard {source} does not keep what it is told: {done.problem}")
        for _ in range(MOST_TAKES):
            taken = yield from copy.take()
            yield from copy.noted(taken.notes)
            if taken.left + len(taken.notes) <= SEAL_NOTES:
                break
    except MoveFailed as error:
        yield from _undo(bucket, source, target, opened_again, arriving, moving)
        raise MoveFailed(f"bucket {bucket}: {error}") from None
    done = yield Step("seal", source, moving, [_own(bucket, sealed)], confirms=True)
    _check(bucket, done)
    copy.here = sealed
    try:
        if done.problem:
            raise MoveFailed(f"shard {source} does not keep its seal: {done.problem}")
        left = 1
        while left:
            taken = yield from copy.take()
            yield from copy.noted(taken.notes)
            left = taken.left
        yield from copy.compare()
    except (Differs, MoveFailed) as error:
        yield from _undo(bucket, source, target, opened_again, arriving, sealed)
        raise MoveFailed(f"bucket {bucket}: {error}") from None
    opened = encode_owner(Owner("open", epoch + 1, target))
    yield from _require(bucket, Step("open", target, arriving, [*copy.opening, _own(bucket, opened)]))
    yield Publish(target)
    yield from _confirm(bucket, target, opened)
    yield from _leave(bucket, source, sealed, Owner("moved", epoch + 1, target), keys[source] + list(copy.kinds))
    return Moved(bucket, "moved", copy.bytes, len(copy.kinds))


def undo(bucket: int, source: str) -> Moving:
    """Undo a move of `bucket` away from `source` that is under way; finish it where its target is open."""
    here: Seen = yield Look(source)
    at_source = _decode(bucket, here.content)
    if at_source is None or at_source.state not in ("open", "sealed") or not at_source.token:
        return Moved(bucket, "nothing")
    if here.is_alive:
        raise Occupied(f"bucket {bucket}: another mover has it in hand; stop that one first")
    target = target_of(at_source.token)
    there: Seen = yield Look(target)
    at_target = _decode(bucket, there.content)
    if at_target is not None and at_target.state == "open":
        return (yield from _finish(bucket, source, target, there, here))
    assert here.content is not None
    opened = encode_owner(Owner("open", at_source.epoch, source))
    arriving = there.content if at_target is not None and at_target.token == at_source.token else None
    yield from _undo(bucket, source, target, opened, arriving, here.content)
    return Moved(bucket, "undone")


def forget(bucket: int, target: str) -> Moving:
    """Remove what a move that never marked its source has left at its `target`."""
    there: Seen = yield Look(target)
    at_target = _decode(bucket, there.content)
    if at_target is None or at_target.state != "arriving":
        return Moved(bucket, "nothing")
    if there.is_alive:
        raise Occupied(f"bucket {bucket}: another mover has it in hand; stop that one first")
    yield from _require(bucket, Step("disown", target, there.content, [(b"DEL", owner_key(bucket))]))
    yield from _clear(bucket, target)
    return Moved(bucket, "undone")


# --- the parts that these share ---


def _finish(bucket: int, source: str, target: str, there: Seen, here: Seen) -> Moving:
    """The target is open: what is missing is the map, and the end of the source."""
    at_target, at_source = _decode(bucket, there.content), _decode(bucket, here.content)
    assert at_target is not None
    if at_source is not None and at_source.state == "open":
        raise MoveFailed(f"bucket {bucket}: open on both {source} and {target}; taba check says more")
    yield Publish(target)
    if at_source is None or at_source.state != "sealed" or target_of(at_source.token) != target:
        return Moved(bucket, "nothing")
    assert here.content is not None and there.content is not None
    yield from _confirm(bucket, target, there.content)
    keys: dict[str, list[bytes]] = yield Scan((source,))
    yield from _leave(bucket, source, here.content, Owner("moved", at_target.epoch, target), keys[source])
    return Moved(bucket, "finished")


def _leave(bucket: int, source: str, sealed: bytes, moved: Owner, keys: list[bytes]) -> Steps:
    gone = encode_owner(moved)
    first, *rest = lots(list(dict.fromkeys(keys)), UNLINKED_KEYS) or [[]]
    unlinking: list[Command] = [(b"UNLINK", *first)] if first else []
    yield from _require(bucket, Step("leave", source, sealed, [_own(bucket, gone), (b"DEL", dirty_key(bucket)), *unlinking]))
    for lot in rest:
        done: Done = yield Step("unlink", source, gone, [(b"UNLINK", *lot)])
        if done.replies is None:
            return  # the bucket is on its way back already, and its mover has cleared this


def _confirm(bucket: int, target: str, opened: bytes) -> Steps:
    """Wait until the target keeps what it has: only then may the source's copy go."""
    for _ in range(MOST_CONFIRMATIONS):
        done: Done = yield Step("confirm", target, opened, [], confirms=True)
        _check(bucket, done)
        if not done.problem:
            return
    raise MoveFailed(f"bucket {bucket}: shard {target} has it, and does not confirm that it keeps it: {done.problem}; come again")


def _undo(bucket: int, source: str, target: str, opened: bytes, arriving: bytes | None, here: bytes) -> Steps:
    if arriving is not None:
        # the target first: the move that is undone cannot open it any more
        yield from _require(bucket, Step("disown", target, arriving, [(b"DEL", owner_key(bucket))]))
    yield from _require(bucket, Step("reopen", source, here, [_own(bucket, opened), (b"DEL", dirty_key(bucket))]))
    if arriving is not None:
        yield from _clear(bucket, target)


def _clear(bucket: int, target: str) -> Steps:
    keys: dict[str, list[bytes]] = yield Scan((target,))
    for lot in lots(keys[target], UNLINKED_KEYS):
        yield from _require(bucket, Step("clear", target, None, [(b"UNLINK", *lot)]))


def _dispossess(bucket: int, target: str, token: str) -> Steps:
    """Make sure that the earlier move with `token`, to another target, cannot open it any more."""
    there: Seen = yield Look(target)
    owner = _decode(bucket, there.content)
    if owner is not None and owner.state == "open":
        raise Overtaken(f"bucket {bucket}: shard {target} has it open; that move is to be finished first")
    if owner is not None and owner.token == token:
        yield from _require(bucket, Step("disown", target, there.content, [(b"DEL", owner_key(bucket))]))
        yield from _clear(bucket, target)


def _own(bucket: int, content: bytes) -> Command:
    return (b"SET", owner_key(bucket), content)


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
        raise MoveFailed(f"bucket {bucket}: {error}") from None


__all__ = ["Moved", "Moving", "forget", "is_content", "move", "undo"]
