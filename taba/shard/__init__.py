"""The shard layer: buckets spread over Redis/Valkey servers, with transactions per bucket; usable without the rest of Taba.

`parse_store` reads a store's address; a `Router` works on it. Names are loaded when first used, because the store's
client installs a Twisted reactor when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taba.shard.connection import ErrorReply, TransactionRefused
    from taba.shard.embedded import EmbeddedStore
    from taba.shard.lock import Lock, LockHeld, LockLost
    from taba.shard.operations import Page, bucket_of
    from taba.shard.router import Command, Reply, Router
    from taba.shard.transaction import BucketBusy, More, NotReplicated, Writes
    from taba.shard.url import StoreURL, parse_store

_HOMES = {
    "ErrorReply": "connection",
    "TransactionRefused": "connection",
    "EmbeddedStore": "embedded",
    "BucketBusy": "transaction",
    "Command": "router",
    "Lock": "lock",
    "LockHeld": "lock",
    "LockLost": "lock",
    "More": "transaction",
    "NotReplicated": "transaction",
    "Page": "operations",
    "Reply": "router",
    "Router": "router",
    "Writes": "transaction",
    "bucket_of": "operations",
    "StoreURL": "url",
    "parse_store": "url",
}

__all__ = [
    "BucketBusy",
    "Command",
    "EmbeddedStore",
    "ErrorReply",
    "Lock",
    "LockHeld",
    "LockLost",
    "More",
    "NotReplicated",
    "Page",
    "Reply",
    "Router",
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
