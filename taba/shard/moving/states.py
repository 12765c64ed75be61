"""What an owner key may become in a move, by which step, on which side. Pure; whatever is not in the table never happens.

A bucket's owner key stands on each shard that has, had or will have it:

    open · open, moving · sealed · leaving · removing · moved    where it is, or was
    nothing · moved · arriving · open                 where it goes
"""

from __future__ import annotations

from typing import NamedTuple

from taba.shard.buckets import Owner

SOURCE, TARGET = "source", "target"
NOTHING, OPEN, MOVING, SEALED, ARRIVING = "nothing", "open", "open, moving", "sealed", "arriving"
LEAVING, REMOVING, MOVED = "leaving", "removing", "moved"


class Change(NamedTuple):
    """A step that writes an owner key: on which side, what it may say before, and what it says then."""

    side: str
    before: frozenset[str]
    after: str
    why: str


def _change(side: str, before: str | tuple[str, ...], after: str, why: str) -> Change:
    return Change(side, frozenset([before] if isinstance(before, str) else before), after, why)


CHANGES = {
    "arrive": _change(
        TARGET, (NOTHING, LEAVING, REMOVING, MOVED, ARRIVING), ARRIVING, "first of all: who had this move cannot open it any more"
    ),
    "begin": _change(SOURCE, (OPEN, MOVING, SEALED), MOVING, "from here on writers note what they write"),
    "seal": _change(SOURCE, MOVING, SEALED, "nobody reads or writes while the last of it is copied"),
    "open": _change(TARGET, ARRIVING, OPEN, "the copy is the bucket now; only finished from here on, never undone"),
    "leave": _change(SOURCE, SEALED, LEAVING, "what is here is nobody's, and still here"),
    "return": _change(SOURCE, LEAVING, OPEN, "the target has lost it, and all of it is here still"),
    "remove": _change(SOURCE, LEAVING, REMOVING, "the target is durable: from here on a part of it may be gone here"),
    "left": _change(SOURCE, REMOVING, MOVED, "last of all: the keys here are removed"),
    "disown": _change(TARGET, ARRIVING, NOTHING, "undoing, at the target first: nobody can open it any more"),
    "reopen": _change(SOURCE, (MOVING, SEALED), OPEN, "undoing, at the source: under an epoch that no move of it ever had"),
}


def state_of(owner: Owner | None) -> str:
    """What the table calls an owner key."""
    if owner is None:
        return NOTHING
    if owner.is_removing:
        return REMOVING
    if owner.moving:
        return {"open": MOVING, "moved": LEAVING}[owner.state]
    return owner.state


def change(step: str, before: Owner | None, after: Owner | None) -> Change:
    """The entry of the table that `step` is, from `before` to `after`. AssertionError for what is not in it."""
    entry = CHANGES[step]
    assert state_of(before) in entry.before and state_of(after) == entry.after, (step, before, after)
    return entry
