"""What the owner keys on all shards say about all buckets."""

from __future__ import annotations

from typing import NamedTuple

from taba.shard.buckets import MalformedMap, Owner, decode_owner, lots, owner_key
from taba.shard.maps import ASK_SECONDS
from taba.shard.servers.connection import Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool

ASKED_OWNERS = 10_000  # in one command


class Survey(NamedTuple):
    """`owners[shard][bucket]`: what the owner key there says, None where it is missing or says nothing that we can read."""

    owners: dict[str, list[Owner | None]]

    def under_way(self) -> dict[int, tuple[str, str]]:
        """bucket → (source, token) of each move that has marked its source and has not ended."""
        return {
            bucket: (shard, owner.token)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state in ("open", "sealed") and owner.token
        }

    def strays(self) -> list[tuple[int, str]]:
        """(bucket, shard) where a move has marked its target, and no source has that move's mark."""
        marked = {(bucket, token) for bucket, (_, token) in self.under_way().items()}
        return [
            (bucket, shard)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state == "arriving" and (bucket, owner.token) not in marked
        ]


async def survey(pools: dict[str, Pool], buckets: int) -> Survey:
    """Ask the shards `pools` by name. Raises StoreUnavailable when one does not answer."""
    answers = await gather([_owners(pool, buckets) for pool in pools.values()])
    found: dict[str, list[Owner | None]] = {}
    for name, answer in zip(pools, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        found[name] = answer
    return Survey(found)


async def _owners(pool: Pool, buckets: int) -> list[Owner | None]:
    keys = [owner_key(bucket) for bucket in range(buckets)]
    replies = await pool.execute([(b"MGET", *lot) for lot in lots(keys, ASKED_OWNERS)], ASK_SECONDS)
    return [_owner(content) for reply in replies for content in _checked(pool, reply)]


def _owner(content: bytes | None) -> Owner | None:
    try:
        return None if content is None else decode_owner(content)
    except MalformedMap:
        return None


def _checked(pool: Pool, reply: Reply) -> list[bytes | None]:
    if isinstance(reply, Exception):
        raise_for(reply, pool.address.text)
    assert isinstance(reply, list)
    return reply
