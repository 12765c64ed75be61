"""The shard layer: buckets spread over Redis/Valkey servers, with transactions per bucket; usable without the rest of Taba.

`parse_store` reads a store's address; a `Router` works on it. Names are loaded when first used, because the store's
client installs a Twisted reactor when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taba.shard.joint import MAX_JOINED
    from taba.shard.keys.listing import Page
    from taba.shard.keys.places import bucket_of
    from taba.shard.lock import Lock, LockHeld, LockLost
    from taba.shard.patience import BucketAway, Standing
    from taba.shard.router import Router
    from taba.shard.servers.connection import Command, ErrorReply, Reply, TransactionRefused
    from taba.shard.servers.embedded import EmbeddedStore
    from taba.shard.servers.url import StoreURL, parse_store
    from taba.shard.transaction import BucketBusy, More, MoreOfMany, NotReplicated, Writes

_HOMES = {
    "ErrorReply": "servers.connection",
    "TransactionRefused": "servers.connection",
    "EmbeddedStore": "servers.embedded",
    "BucketAway": "patience",
    "BucketBusy": "transaction",
    "Command": "servers.connection",
    "Lock": "lock",
    "LockHeld": "lock",
    "LockLost": "lock",
    "MAX_JOINED": "joint",
    "More": "transaction",
    "MoreOfMany": "transaction",
    "NotReplicated": "transaction",
    "Page": "keys.listing",
    "Reply": "servers.connection",
    "Router": "router",
    "Standing": "patience",
    "Writes": "transaction",
    "bucket_of": "keys.places",
    "StoreURL": "servers.url",
    "parse_store": "servers.url",
}

__all__ = [
    "MAX_JOINED",
    "BucketAway",
    "BucketBusy",
    "Command",
    "EmbeddedStore",
    "ErrorReply",
    "Lock",
    "LockHeld",
    "LockLost",
    "More",
    "MoreOfMany",
    "NotReplicated",
    "Page",
    "Reply",
    "Router",
    "Standing",
    "StoreURL",
    "TransactionRefused",
    "Writes",
    "bucket_of",
    "parse_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
