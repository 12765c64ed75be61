"""A Redis/Valkey Cluster as one shard: all buckets are its own, and each is on the node that has the bucket's slot.

1. Slots, re-sharding and failovers are the cluster's own; `CLUSTER SLOTS` and MOVED say where a slot is.
2. ASK is never followed: a transaction at a slot's new place would not see what is still at the old one. Whoever meets
   ASK or TRYAGAIN waits until the slot has settled.
3. A bucket's keys share a hash tag, so a transaction of one bucket is one of one node. Owner keys travel with their
   slots; one that is missing still means no: a node that lost its keys is found out, not taken for empty.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.servers.connection import REPLY_SECONDS, Command, ErrorReply, Redirected, Reply, TransactionRefused, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import CHECKOUT_SECONDS, Pool
from taba.shard.servers.prefix import on_the_wire
from taba.shard.servers.url import Address

SLOTS = 16_384
ASK_SECONDS = 0.5  # for one node's view of the cluster; another one is asked then
MOST_ASKED = 5  # nodes, for the slots, in one go
MOST_REDIRECTIONS = 5  # of one command; slots that move faster are waited for by whoever sent it


def slot_of(key: bytes) -> int:
    """The slot of `key`: CRC16 (XMODEM) of its hash tag, the part between the first { and the next }, or of the whole key."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def slot_of_bucket(bucket: int) -> int:
    return crc_hqx(b"%d" % bucket, 0) % SLOTS


def parse_slots(reply: Reply, asked: Address) -> list[tuple[int, int, str, int]]:
    """(first slot, last slot, host, port) of each run of slots in the reply to CLUSTER SLOTS of the node at `asked`.

    Raises ValueError for anything else. A node that does not know its own name calls itself what we call it.
    """
    if not isinstance(reply, list):
        raise ValueError(f"CLUSTER SLOTS: {reply!r}"[:200])
    runs = []
    for entry in reply:
        try:
            first, last, (host, port, *_), *_ = entry
            name = host.decode() if host else asked.host
        except (TypeError, ValueError, AttributeError):
            raise ValueError(f"CLUSTER SLOTS: {entry!r}"[:200]) from None
        if not (isinstance(first, int) and isinstance(last, int) and isinstance(port, int) and 0 <= first <= last < SLOTS):
            raise ValueError(f"CLUSTER SLOTS: {entry!r}"[:200])
        if name != "?":
            runs.append((first, last, name, port))
    return runs


class ClusterPool:
    """The connections to a cluster; `new_pool` makes those to one node. Has what a Pool has as the form of a shard."""

    def __init__(self, reactor: Any, address: Address, new_pool: Callable[[Address], Pool], random: Random | None = None):
        self.address = address
        self._reactor = reactor
        self._new_pool = new_pool
        self._random = random or Random()
        self._nodes: dict[tuple[str, int], Pool] = {}
        self._is_started = self._is_closed = False
        self._seeds = [self._node(one.host, one.port) for one in address.via]
        self._slots: list[Pool | None] = [None] * SLOTS
        self._closing: list[Deferred[None]] = []

    # --- as one of the forms that a shard may have ---

    @property
    def servers(self) -> Sequence[Pool]:
        """The pools of the primaries that have slots."""
        held = dict.fromkeys(self._slots)
        return [pool for pool in self._nodes.values() if pool in held]

    @property
    def is_connected(self) -> bool:
        """Every slot has a node, and each of these nodes is connected."""
        return None not in self._slots and all(pool.is_connected for pool in self.servers)

    @property
    def last_error(self) -> str:
        away = [pool.last_error for pool in self.servers or self._seeds if not pool.is_connected]
        if not away and None in self._slots:
            return f"{self._slots.count(None)} of its {SLOTS} slots belong to no node"
        return "; ".join(away)[:1000]

    def holding(self, bucket: int) -> Pool:
        """The pool of the node that has the slot of `bucket`. Raises StoreUnavailable when none is known to."""
        return self._having(slot_of_bucket(bucket))

    def server_of(self, key: bytes) -> Pool:
        """The pool of the node that has `key`. Raises StoreUnavailable when none is known to."""
        return self._having(self._slot_of(key))

    async def refresh(self, seconds: float) -> None:
        """Ask a node which node has which slot; another one where it does not answer.

        Raises ConfigurationError where no node has told yet, and one is none of a cluster; StoreUnavailable when none answers.
        """
        errors = []
        known = list(dict.fromkeys([*self.servers, *self._seeds]))
        self._random.shuffle(known)
        known.sort(key=lambda pool: not pool.is_connected)
        for pool in known[:MOST_ASKED]:
            try:
                (reply,) = await pool.execute([(b"CLUSTER", b"SLOTS")], min(seconds, ASK_SECONDS), min(seconds, ASK_SECONDS))
                if isinstance(reply, ErrorReply):
                    raise_for(reply, pool.address.text)
                runs = parse_slots(reply, pool.address)
                if not runs:
                    raise ValueError(f"{pool.address.text} is in no cluster that has slots")
                self._take(runs)
                return
            except TransactionRefused as error:
                if not self.servers:
                    raise ConfigurationError("--store", self.address.text, f"takes nodes of a cluster: {error}") from None
                errors.append(str(error))  # another server has the place of a node that is gone
            except (StoreUnavailable, ValueError) as error:
                errors.append(str(error))
        raise StoreUnavailable(f"{self.address.text}: no node tells the slots: {'; '.join(errors)}"[:1000])

    def redirected(self, bucket: int, redirection: str) -> None:
        """A node said where the slot of `bucket` is: believed until the next `refresh`."""
        word, _, rest = redirection.partition(" ")
        slot, _, place = rest.partition(" ")
        host, _, port = place.rpartition(":")
        if word == "MOVED" and slot == str(slot_of_bucket(bucket)) and host and host != "?" and port.isdigit():
            self._slots[int(slot)] = self._node(host, int(port))

    # --- life ---

    def start(self) -> None:
        self._is_started = True
        for pool in self._nodes.values():
            pool.start()

    async def close(self) -> None:
        self._is_closed = True
        for pool in list(self._nodes.values()):
            await pool.close()
        for closing in self._closing:
            await closing

    # --- keys that belong to no bucket ---

    async def execute(
        self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, checkout_seconds: float = CHECKOUT_SECONDS
    ) -> list[Reply]:
        """The replies to `commands`, each of one key and none that may not be sent twice; one round trip per node."""
        replies: dict[int, Reply] = {}
        if None in self._slots:
            await self.refresh(seconds)
        for _ in range(MOST_REDIRECTIONS):
            by_node: dict[Pool, list[int]] = {}
            for number, command in enumerate(commands):
                if number not in replies:
                    by_node.setdefault(self._having(self._slot_of(command[1])), []).append(number)
            answers = await gather(
                [pool.execute([commands[one] for one in here], seconds, checkout_seconds) for pool, here in by_node.items()]
            )
            redirection: Redirected | None = None
            for (pool, here), answer in zip(by_node.items(), answers, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                for number, reply in zip(here, answer, strict=True):
                    try:
                        if isinstance(reply, ErrorReply):
                            raise_for(reply, pool.address.text)
                        replies[number] = reply
                    except Redirected as error:
                        redirection = error
                    except Exception:
                        replies[number] = reply  # for the caller to judge
            if redirection is None:
                return [replies[number] for number in range(len(commands))]
            await self.refresh(seconds)
        raise redirection or StoreUnavailable(f"{self.address.text}: no command to send")

    # --- nodes ---

    def _slot_of(self, key: bytes) -> int:
        return slot_of(on_the_wire(key, self.address.prefix))

    def _having(self, slot: int) -> Pool:
        pool = self._slots[slot]
        if pool is None:
            raise StoreUnavailable(f"{self.address.text}: no node is known to have slot {slot}")
        return pool

    def _node(self, host: str, port: int) -> Pool:
        pool = self._nodes.get((host, port))
        if pool is None:
            pool = self._nodes[host, port] = self._new_pool(attrs.evolve(self.address, host=host, port=port, via=()))
            if self._is_started and not self._is_closed:
                pool.start()
        return pool

    def _take(self, runs: Sequence[tuple[int, int, str, int]]) -> None:
        if self._is_closed:
            return
        slots: list[Pool | None] = [None] * SLOTS
        for first, last, host, port in runs:
            slots[first : last + 1] = [self._node(host, port)] * (last + 1 - first)
        self._slots = slots
        used = {*slots, *self._seeds}
        for place, pool in list(self._nodes.items()):
            if pool not in used:
                del self._nodes[place]
                # whoever is in the middle of something there finds out by this that its slot has moved
                self._closing = [one for one in self._closing if not one.called]
                self._closing.append(ensureDeferred(pool.close()))


ShardPool = Pool | ClusterPool  # a shard's connections: to one server, or to all nodes of a cluster
