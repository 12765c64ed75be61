"""Deletes Tabs and Clients: their States, all parts, whatever their Type, and their index entries, in bounded transactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taba.names import OWN_TABS
from taba.server import keys
from taba.server.fold.cycle import bucket_of
from taba.server.keep.changing import index_removal, sweep
from taba.server.router import Command, IsRouter
from taba.server.work.knowing import KnowsTypes, further_parts
from taba.shard import More, Writes

CHUNK_STATES = 1000  # deleted in one transaction, which takes some milliseconds


async def delete_tabs(router: IsRouter, handlers: KnowsTypes, tabs: Iterable[str]) -> dict[str, int]:
    """Delete every State of these Tabs; how many `tabs` and `states` there were. What is recorded meanwhile makes them anew."""
    found, states = 0, 0
    buckets: dict[int, list[str]] = {}
    for tab in dict.fromkeys(tabs):
        buckets.setdefault(bucket_of(tab, router.buckets), []).append(tab)
    for bucket, of_bucket in buckets.items():
        for tab in of_bucket:
            is_there, is_whole = False, False
            while not is_whole:
                was_there, deleted, is_whole = await _delete_tab(router, handlers, bucket, tab)
                is_there, states = is_there or was_there, states + deleted
            found += is_there
        await sweep(router, bucket)
    return {"tabs": found, "states": states}


async def _delete_tab(router: IsRouter, handlers: KnowsTypes, bucket: int, tab: str) -> tuple[bool, int, bool]:
    """One transaction: whether the Tab was there, how many States it deleted, and whether that was all."""

    def update(replies: Sequence[Any]) -> Writes | More:
        type, members = replies
        clients = [keys.text_of(client) for client in sorted(members)[:CHUNK_STATES]]
        left = len(members) - len(clients)
        result = (type is not None, len(clients), not left)
        if type is None and not members:
            return Writes([], result)
        return _deleted(handlers, bucket, {tab: clients}, {tab: left}, {tab: keys.text_of(type) if type else ""}, [], result)

    reads: list[Command] = [(b"HGET", keys.tabs(bucket), tab.encode()), (b"SMEMBERS", keys.clients_of(bucket, tab.encode()))]
    answer: tuple[bool, int, bool] = await router.transact(bucket, reads, update)
    return answer


async def delete_clients(router: IsRouter, handlers: KnowsTypes, clients: Iterable[str]) -> dict[str, int]:
    """Delete every State of these Clients; how many `clients` and `states` there were. A Tab without any State goes too."""
    names = [client.encode() for client in dict.fromkeys(clients)]
    if not names:
        return {"clients": 0, "states": 0}
    replies = await router.read_many({b: [(b"SMISMEMBER", keys.clients(b), *names)] for b in range(router.buckets)})
    own = {bucket_of(tab, router.buckets) for tab in OWN_TABS}
    found: set[bytes] = set()
    states = 0
    for bucket, [are_there] in replies.items():
        here = [name for name, is_there in zip(names, are_there, strict=True) if is_there]
        found.update(here)
        if bucket in own:  # what is known of their lives goes too, whether or not they record anything else there
            here = names
        is_whole = not here
        while not is_whole:
            deleted, is_whole = await _delete_clients(router, handlers, bucket, here)
            states += deleted
    return {"clients": len(found), "states": states}


async def _delete_clients(router: IsRouter, handlers: KnowsTypes, bucket: int, clients: Sequence[bytes]) -> tuple[int, bool]:
    """One transaction: how many States it deleted, and whether that was all."""
    types: dict[str, str] = {}

    def update(replies: Sequence[Any]) -> More:
        types.clear()
        types.update(zip(map(bytes.decode, replies[0][::2]), map(bytes.decode, replies[0][1::2]), strict=True))
        reads: list[Command] = []
        for tab in types:
            key = keys.clients_of(bucket, tab.encode())
            reads += ((b"SMISMEMBER", key, *clients), (b"SCARD", key))
        return More(reads, choose)

    def choose(replies: Sequence[Any]) -> Writes | More:
        gone: dict[str, list[str]] = {}
        left: dict[str, int] = {}
        own = 0  # States of Taba's own Tabs: they go too, and are not what was asked about
        room = CHUNK_STATES
        is_whole = True
        for tab, are_there, size in zip(types, replies[::2], replies[1::2], strict=True):
            here = [keys.text_of(client) for client, is_there in zip(clients, are_there, strict=True) if is_there]
            is_whole = is_whole and len(here) <= room
            here = here[:room]
            room -= len(here)
            own += len(here) * (tab in OWN_TABS)
            if here:
                gone[tab], left[tab] = here, size - len(here)
        forgotten: list[Command] = [(b"SREM", keys.clients(bucket), *clients)] if is_whole else []
        return _deleted(handlers, bucket, gone, left, types, forgotten, (CHUNK_STATES - room - own, is_whole))

    answer: tuple[int, bool] = await router.transact(bucket, [(b"HGETALL", keys.tabs(bucket))], update)
    return answer


def _deleted(
    handlers: KnowsTypes,
    bucket: int,
    gone: Mapping[str, Sequence[str]],
    left: Mapping[str, int],
    types: Mapping[str, str],
    others: list[Command],
    result: Any,
) -> Writes | More:
    """What deletes the States of Tab → Clients, then `others`. Without a Handler only the store knows how many parts they have."""
    known = [(keys.state_field(tab, client), types[tab]) for tab, clients in gone.items() for client in clients]
    unknown = {field for field, type in known if not type or handlers.get(type) is None}

    def write(fields: Sequence[bytes]) -> Writes:
        of_unknown = [field for field in fields if b"\0".join(field.split(b"\0")[:2]) in unknown]
        emptied = [one for field, type in known if field not in unknown for one in _all_fields(handlers, field, type)] + of_unknown
        commands: list[Command] = [(b"HDEL", keys.states(bucket), *emptied)] if emptied else []
        return Writes(commands + index_removal(bucket, gone, left, forgets=True) + others, result)

    if unknown:
        return More([(b"HKEYS", keys.states(bucket))], lambda replies: write(replies[0]))
    return write(())


def _all_fields(handlers: KnowsTypes, field: bytes, type: str) -> list[bytes]:
    return [field, *keys.part_fields(field, further_parts(handlers, type))]
