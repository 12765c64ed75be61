"""What the owner keys on all shards say about all buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from taba.shard.buckets import MalformedMap, Owner, decode_owner, lots, owner_key, target_of
from taba.shard.maps import ASK_SECONDS
from taba.shard.servers.cluster import ClusterPool, ShardPool
from taba.shard.servers.connection import Reply, raise_for
from taba.shard.servers.gather import gather

ASKED_OWNERS = 10_000  # in one command


class Survey(NamedTuple):
    """`owners[shard][bucket]`: what the owner key there says, None where it is missing or says nothing that we can read."""

    owners: dict[str, list[Owner | None]]
    unreadable: frozenset[tuple[int, str]] = frozenset()  # (bucket, shard) where it says what cannot be read

    def under_way(self) -> dict[int, tuple[str, str]]:
        """bucket → (source, token) of each move that has marked its source and has not ended; none that a third shard has open."""
        found: dict[int, tuple[str, str]] = {}
        for shard, owners in self.owners.items():
            for bucket, owner in enumerate(owners):
                has_left = owner is not None and owner.state in ("open", "sealed") and bool(owner.token)
                if owner is not None and has_left and not set(self.open_at(bucket)) - {shard, target_of(owner.token)}:
                    found[bucket] = (shard, owner.token)
        return found

    def open_at(self, bucket: int) -> dict[str, Owner]:
        """The shards that say that they themselves have `bucket` open, and what they say."""
        said = {shard: owners[bucket] for shard, owners in self.owners.items()}
        return {shard: owner for shard, owner in said.items() if owner is not None and owner.state == "open" and owner.name == shard}

    def sealed_at(self, bucket: int) -> list[str]:
        """The shards that have `bucket` sealed."""
        return [shard for shard, owners in self.owners.items() if (owner := owners[bucket]) is not None and owner.state == "sealed"]

    def unsettled(self) -> list[int]:
        """The buckets that no move has in hand, and that not exactly one shard has open."""
        under_way = self.under_way()
        buckets = range(len(next(iter(self.owners.values()), [])))
        return [one for one in buckets if one not in under_way and (len(self.open_at(one)) != 1 or self.sealed_at(one))]

    def strays(self) -> list[tuple[int, str]]:
        """(bucket, shard) where a move has marked its target, and no source has that move's mark."""
        marked = {(bucket, token) for bucket, (_, token) in self.under_way().items()}
        return [
            (bucket, shard)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state == "arriving" and (bucket, owner.token) not in marked
        ]

    def leavings(self) -> list[tuple[int, str]]:
        """(bucket, shard) where a bucket has left, and its keys have not been removed."""
        return [
            (bucket, shard)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state == "moved" and owner.moving
        ]


async def survey(pools: Mapping[str, ShardPool], buckets: int) -> Survey:
    """Ask the shards `pools` by name. Raises StoreUnavailable when one does not answer."""
    answers = await gather([_contents(pool, buckets) for pool in pools.values()])
    found: dict[str, list[Owner | None]] = {}
    unreadable: list[tuple[int, str]] = []
    for name, answer in zip(pools, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        found[name] = list(map(read_owner, answer))
        pairs = enumerate(zip(answer, found[name], strict=True))
        unreadable += [(bucket, name) for bucket, (content, owner) in pairs if owner is None and content is not None]
    return Survey(found, frozenset(unreadable))


async def _contents(pool: ShardPool, buckets: int) -> list[bytes | None]:
    keys = [owner_key(bucket) for bucket in range(buckets)]
    if isinstance(pool, ClusterPool):  # one command there is for one slot
        replies = await pool.execute([(b"GET", key) for key in keys], ASK_SECONDS)
        return _checked(pool, replies)
    replies = await pool.execute([(b"MGET", *lot) for lot in lots(keys, ASKED_OWNERS)], ASK_SECONDS)
    return [content for reply in replies for content in _checked(pool, reply)]


def read_owner(content: object) -> Owner | None:
    """What an owner key says; None where it is missing, or cannot be read."""
    try:
        return decode_owner(content) if isinstance(content, bytes) else None
    except MalformedMap:
        return None


def _checked(pool: ShardPool, reply: Reply | list[Reply]) -> list[Any]:
    for one in [reply] if isinstance(reply, Exception) else reply if isinstance(reply, list) else []:
        if isinstance(one, Exception):
            raise_for(one, pool.address.text)
    assert isinstance(reply, list)
    return reply
