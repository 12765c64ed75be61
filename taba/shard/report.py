"""What each shard of a store holds and does, as its servers' INFO says."""

from __future__ import annotations

from collections import Counter

import attrs

from taba.shard.atlas import Atlas
from taba.shard.patience import Deadline
from taba.shard.servers.connection import Reply
from taba.shard.servers.gather import gather


@attrs.frozen
class ShardReport:
    """One shard, for `/v1/shards`; keys, bytes and ops (per second) are None while it does not answer."""

    name: str
    url: str
    buckets: int
    keys: int | None
    bytes: int | None
    ops: int | None


async def shards(atlas: Atlas, deadline: Deadline) -> list[ShardReport]:
    """What each shard holds and does now; of a cluster, what each of its primaries does. Raises StoreUnavailable."""
    await atlas.refresh(deadline)  # whoever has nothing to do here does not notice that buckets move
    map = await atlas.current_map(deadline)
    held = Counter((map.shard_of(bucket), atlas.server_of(map, bucket)) for bucket in range(map.buckets))
    servers = [(shard.name, server) for shard in map.shards for server in atlas.pool_of(shard.name).servers]
    answers = await gather([server.execute([(b"INFO",)], deadline.left) for _, server in servers])
    reports = []
    for (name, server), answer in zip(servers, answers, strict=True):
        keys, size, ops = _figures(answer[0], server.address.database) if isinstance(answer, list) else (None, None, None)
        shown = name if atlas.pool_of(name) is server else f"{name}/{server.address.host}:{server.address.port}"
        reports.append(ShardReport(shown, server.address.text, held[name, server], keys, size, ops))
    return reports


def _figures(reply: Reply, database: int) -> tuple[int | None, int | None, int | None]:
    """(keys, bytes, operations per second) of an INFO reply."""
    if not isinstance(reply, bytes):
        return None, None, None
    lines = dict(line.partition(":")[::2] for line in reply.decode(errors="replace").splitlines() if ":" in line)
    keys = 0
    for name, value in lines.items():
        if name == f"db{database}" and value.startswith("keys="):
            keys += int(value[5:].partition(",")[0])
    used, ops = lines.get("used_memory", ""), lines.get("instantaneous_ops_per_sec", "")
    return keys, int(used) if used.isdigit() else None, int(ops) if ops.isdigit() else None
