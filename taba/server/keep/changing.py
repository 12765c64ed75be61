"""Changes to States from outside the fold: look first, decide at leisure, then change what is still as it was looked at.

1. A look holds up nobody. A change is one short transaction per bucket in which each State is written, or goes, only
   if its bytes are those that were looked at: what an Event has touched meanwhile is left to the next look.
2. The index entries of a State come and go in the transaction in which it does; a Tab goes with its last State.
3. Everything may be done again from the start, and by two Servers at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from taba.names import OWN_TABS
from taba.server import keys
from taba.server.router import Command, IsRouter
from taba.server.work.knowing import KnowsTypes, further_parts
from taba.shard import More, Writes

LOT_STATES = 100  # looked at, and changed, at a time: some milliseconds of a bucket, and a few MiB at the most usual
SLICE_TABS = 200  # whose Clients are read at a time
MAX_ARGUMENTS = 1000  # of one command


class Kept(NamedTuple):
    """A State as it was looked at: the contents of its fields, the main part's first."""

    tab: str
    type: str
    client: str
    contents: dict[bytes, bytes | None]

    @property
    def parts(self) -> list[keys.Framed]:
        """Raises ValueError for what is no part of a State."""
        return [keys.unframe(content) for content in self.contents.values()]


class Change(NamedTuple):
    """What becomes of States of one Tab if all fields in `seen` hold what they held."""

    tab: str
    seen: Mapping[bytes, bytes | None]
    written: Mapping[bytes, bytes] = {}
    emptied: Sequence[bytes] = ()
    come: Sequence[str] = ()  # Clients that have a State of this Tab from now on …
    gone: Sequence[str] = ()  # … and those that have none any more
    only_if_last: bool = False  # and only if the Tab has no other Client than those in `gone`


async def walk(router: IsRouter, types: KnowsTypes, bucket: int) -> AsyncIterator[list[Kept]]:
    """Every State in `bucket` whose Type has a Handler, LOT_STATES at a time. What comes meanwhile may be missing."""
    [pairs] = await router.read(bucket, [(b"HGETALL", keys.tabs(bucket))])
    tabs = [(keys.text_of(tab), keys.text_of(type)) for tab, type in zip(pairs[::2], pairs[1::2], strict=True)]
    tabs = [(tab, type) for tab, type in tabs if types.get(type) is not None]
    waiting: list[tuple[str, str, str]] = []
    for start in range(0, len(tabs), SLICE_TABS):
        some = tabs[start : start + SLICE_TABS]
        members = await router.read(bucket, [(b"SMEMBERS", keys.clients_of(bucket, tab.encode())) for tab, _ in some])
        for (tab, type), clients in zip(some, members, strict=True):
            waiting += ((tab, type, keys.text_of(client)) for client in sorted(clients))
        while len(waiting) >= LOT_STATES or (waiting and start + SLICE_TABS >= len(tabs)):
            yield await look(router, types, bucket, waiting[:LOT_STATES])
            del waiting[:LOT_STATES]


async def look(router: IsRouter, types: KnowsTypes, bucket: int, wanted: Sequence[tuple[str, str, str]]) -> list[Kept]:
    """The States of (Tab, Type, Client) that are there."""
    fields = [[field, *keys.part_fields(field, further_parts(types, type))] for _, type, field in _with_fields(wanted)]
    [contents] = await router.read(bucket, [(b"HMGET", keys.states(bucket), *[field for of in fields for field in of])])
    kept, position = [], 0
    for (tab, type, client), of in zip(wanted, fields, strict=True):
        found = dict(zip(of, contents[position : position + len(of)], strict=True))
        position += len(of)
        if found[of[0]] is not None:
            kept.append(Kept(tab, type, client, found))
    return kept


def _with_fields(wanted: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, bytes]]:
    return [(tab, type, keys.state_field(tab, client)) for tab, type, client in wanted]


def framed(field: bytes, parts: Sequence[bytes], version: int, age: int) -> tuple[dict[bytes, bytes], list[bytes]]:
    """A State's parts as fields to write, and the fields of further parts that are empty and not kept. `age`: the store's, in minutes."""
    frame = keys.frame(version, age)
    fields = [field, *keys.part_fields(field, len(parts) - 1)]
    written = {name: frame + part for name, part in zip(fields, parts, strict=True) if part or name == field}
    return written, [name for name in fields if name not in written]


async def change(router: IsRouter, bucket: int, changes: Sequence[Change]) -> list[bool]:
    """Make `changes`, no two of which share a field; which of them were made. Others: something has changed since the look."""
    if not changes:
        return []
    fields = [field for one in changes for field in one.seen]
    tabs = list(dict.fromkeys(one.tab for one in changes if one.gone))
    reads: list[Command] = [(b"HMGET", keys.states(bucket), *fields)]
    reads += [(b"SCARD", keys.clients_of(bucket, tab.encode())) for tab in tabs]

    def update(replies: Sequence[Any]) -> Writes:
        there = dict(zip(fields, replies[0], strict=True))
        sizes = dict(zip(tabs, replies[1:], strict=True))
        made = [
            all(there[field] == content for field, content in one.seen.items())
            and not (one.only_if_last and sizes[one.tab] != len(one.gone))
            for one in changes
        ]
        return Writes(_commands(bucket, [one for one, is_made in zip(changes, made, strict=True) if is_made], sizes), made)

    answer: list[bool] = await router.transact(bucket, reads, update)
    return answer


def _commands(bucket: int, changes: Sequence[Change], sizes: Mapping[str, int]) -> list[Command]:
    written = [item for one in changes for pair in one.written.items() for item in pair]
    commands: list[Command] = [(b"HSET", keys.states(bucket), *written)] if written else []
    emptied = [field for one in changes for field in one.emptied]
    if emptied:
        commands.append((b"HDEL", keys.states(bucket), *emptied))
    for one in changes:
        if one.come:
            names = [client.encode() for client in one.come]
            commands.append((b"SADD", keys.clients_of(bucket, one.tab.encode()), *names))
            commands.append((b"SADD", keys.clients(bucket), *names))
    left = dict(sizes)
    gone: dict[str, list[str]] = {}
    for one in changes:
        if one.gone:
            gone.setdefault(one.tab, []).extend(one.gone)
            left[one.tab] += len(one.come) - len(one.gone)
    return commands + index_removal(bucket, gone, left)


def index_removal(bucket: int, gone: Mapping[str, Sequence[str]], left: Mapping[str, int], forgets: bool = False) -> list[Command]:
    """The commands that take Tab → Clients out of the index. `left`: how many Clients each Tab then still has.

    `forgets`: what a Tab means goes with it; else it stays for when the Tab comes back, and goes with sweep_meanings.
    """
    commands: list[Command] = []
    for tab, clients in gone.items():
        name = tab.encode()
        for start in range(0, len(clients), MAX_ARGUMENTS):
            some = [client.encode() for client in clients[start : start + MAX_ARGUMENTS]]
            commands.append((b"SREM", keys.clients_of(bucket, name), *some))
        if left[tab] <= 0:
            commands += ((b"HDEL", keys.tabs(bucket), name), keys.count_tab_changes(bucket))
            if forgets:
                commands.append((b"HDEL", keys.meanings(bucket), *keys.meaning_fields(name)))
    return commands


async def sweep(router: IsRouter, bucket: int) -> None:
    """Take out of the bucket's set of Clients those that have no State in it any more."""

    def compare(replies: Sequence[Any]) -> More:
        of_tabs = [keys.clients_of(bucket, tab) for tab in replies[0] if keys.text_of(tab) not in OWN_TABS]
        return More([(b"SDIFF", keys.clients(bucket), *of_tabs)], remove)

    def remove(replies: Sequence[Any]) -> Writes:
        gone = list(replies[0])
        lots = [gone[start : start + MAX_ARGUMENTS] for start in range(0, len(gone), MAX_ARGUMENTS)]
        return Writes([(b"SREM", keys.clients(bucket), *lot) for lot in lots])

    await router.transact(bucket, [(b"HKEYS", keys.tabs(bucket))], compare)
