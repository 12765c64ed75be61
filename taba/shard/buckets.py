"""Which shard owns which bucket: the map, its bytes, and the text of owner keys. Pure.

1. A map is total and disjoint: every bucket has exactly one owner, a shard of the map.
2. A map only says where to look; the owner key, on the shard itself, decides.
3. A map with a higher epoch is newer. Two of one epoch there are only where a server lost what it had acknowledged; all who meet
   them take the same one for the newer, and the next that is made is over both.
4. The epoch of an owner key grows with each move of its bucket, and with each that is undone or begun again. The map keeps it:
   what is said late, with a lower one, changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import attrs

from taba import versions
from taba.bounds import MAX_BUCKETS

MAX_MAP_BYTES = 2 * 1024 * 1024  # 65,536 buckets and 1,000 shards fit

MAX_KEPT_KEYS = 8_192  # buckets whose keys a process need not make anew each time

STORE_KEY = b"taba:store"
MAP_KEY = b"taba:map"
SUCCEEDS_KEY = b"taba:succeeds"  # ids of the stores that this one follows, because a person said so; one a line
INITIALISED_KEY = b"taba:initialised"  # holds the store's id: from then on nothing is made where something is missing


@lru_cache(MAX_KEPT_KEYS)
def prefix_of(bucket: int) -> bytes:
    """What every key of `bucket` begins with: its hash tag keeps them together on a Redis Cluster too."""
    return b"taba:{%d}:" % bucket


def lots(keys: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    """`keys` in lots of `size`, for commands that take only so many."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def owner_key(bucket: int) -> bytes:
    """The key that says whose a bucket is: an Owner."""
    return b"taba:{%d}:owner" % bucket


def lease_key(bucket: int) -> bytes:
    """The key of whoever alone may write to a bucket for a while."""
    return b"taba:{%d}:lease" % bucket


@lru_cache(MAX_KEPT_KEYS)
def guards_of(bucket: int) -> tuple[bytes, bytes]:
    """What every transaction on `bucket` reads and WATCHes: its owner key and its lease."""
    return owner_key(bucket), lease_key(bucket)


def dirty_key(bucket: int) -> bytes:
    """Set: what was written while the bucket is being copied (see `dirty`)."""
    return b"taba:{%d}:dirty" % bucket


def staging_prefix(bucket: int) -> bytes:
    """What the keys of copies begin with; then comes the move's token, `:`, and the key's own name after the bucket."""
    return b"taba:{%d}:staging:" % bucket


class MalformedMap(ValueError):
    """What stands in the store is no map, no record and no owner that this version reads."""


class OtherVersion(MalformedMap):
    """It was written by another version of Taba, which keeps its buckets otherwise."""


class Shard(NamedTuple):
    """A shard as the map knows it; `url` has no user and no password."""

    name: str
    url: str


class Owner(NamedTuple):
    """An owner key's content.

    `open:<epoch>:<shard>`: that shard answers for the bucket; with `:moving:<token>` behind it, writers note what they write.
    `sealed:<epoch>:<token>`: nobody answers, the last of it is being copied. `moved:<epoch>:<shard>`: it went there; with
    `:leaving:<token>` behind it, its keys are still here, all of them; with `:removing:<token>`, they are being removed.
    `arriving:<epoch>:<token>`: a move is copying it to here. A token begins with the name of its move's target.
    """

    state: str
    epoch: int
    name: str  # of a shard; where sealed or arriving, the token
    moving: str = ""  # the token while open, or moved, and under way
    is_removing: bool = False  # moved, and some of its keys may be gone

    @property
    def token(self) -> str:
        """The token of the move that has this bucket in hand; "" where none has."""
        return self.name if self.state in ("sealed", "arriving") else self.moving


_MOVING, _LEAVING, _REMOVING = ":moving:", ":leaving:", ":removing:"


def encode_owner(owner: Owner) -> bytes:
    """What an owner key has for it; `decode_owner` reads it."""
    word = _REMOVING if owner.is_removing else _LEAVING if owner.state == "moved" else _MOVING
    moving = word + owner.moving if owner.moving else ""
    return f"{owner.state}:{owner.epoch}:{owner.name}{moving}".encode()


def is_moving(content: object) -> bool:
    """Whether an owner key's content asks writers to note what they write."""
    return isinstance(content, bytes) and _MOVING.encode() in content


def make_token(target: str, unique: str) -> str:
    """The token of a move to the shard `target`; `unique` holds no dot."""
    return f"{target}.{unique}"


def target_of(token: str) -> str:
    """The shard that the move with this token copies to."""
    return token.rpartition(".")[0]


def decode_owner(content: bytes) -> Owner:
    """Raises MalformedMap for anything that `encode_owner` would not have written."""
    state, _, rest = content.partition(b":")
    epoch, _, name = rest.partition(b":")
    is_number = epoch.isdigit() and len(epoch) <= 18 and epoch == b"%d" % int(epoch)
    if state not in (b"open", b"sealed", b"moved", b"arriving") or not is_number or not name:
        raise MalformedMap(f"owner key {content[:100]!r}")
    moving = b""
    is_removing = state == b"moved" and _REMOVING.encode() in content
    words = {b"open": [_MOVING], b"moved": [_REMOVING, _LEAVING]}.get(state, [])
    if word := next((word.encode() for word in words if word.encode() in content), b""):
        name, _, moving = name.partition(word)
        if not name or not moving:
            raise MalformedMap(f"owner key {content[:100]!r}")
    if state == b"moved" and is_moving(content):
        raise MalformedMap(f"owner key {content[:100]!r}: of an earlier version, which did not say whether all of it is there")
    try:
        return Owner(state.decode(), int(epoch), name.decode(), moving.decode(), is_removing)
    except UnicodeDecodeError:
        raise MalformedMap(f"owner key {content[:100]!r}") from None


def _is_total(_: Any, attribute: Any, owners: tuple[int, ...]) -> None:
    if not 1 <= len(owners) <= MAX_BUCKETS:
        raise MalformedMap(f"a map of {len(owners)} buckets; takes 1 to {MAX_BUCKETS}")


@attrs.frozen
class BucketMap:
    """The whole assignment: `owners[bucket]` is an index into `shards`. Raises MalformedMap where it is not total and disjoint."""

    store: str
    epoch: int
    shards: tuple[Shard, ...]
    owners: tuple[int, ...] = attrs.field(validator=_is_total)
    named: int = 0  # how many shards ever had a name: none is given twice
    epochs: tuple[int, ...] = ()  # of the owner key by which each bucket is where it is; 1 for all where none is given
    draining: tuple[str, ...] = ()  # shards that are to lose all their buckets: none goes there
    version: int = versions.HERE.stores[0]  # in which the store is written: the map, its record, and what stands in its buckets

    def __attrs_post_init__(self) -> None:
        if not self.epochs:
            object.__setattr__(self, "epochs", (1,) * len(self.owners))
        if len(self.epochs) != len(self.owners) or min(self.epochs) < 1:
            raise MalformedMap("a map takes one epoch, at least 1, for each bucket")
        if len(set(self.draining)) != len(self.draining) or not {shard.name for shard in self.shards} >= set(self.draining):
            raise MalformedMap("a map drains shards that it has, each once")
        if not self.shards or len({shard.name for shard in self.shards}) != len(self.shards):
            raise MalformedMap("a map takes at least one shard, each name once")
        if not (min(self.owners) >= 0 and max(self.owners) < len(self.shards)):
            raise MalformedMap("a bucket belongs to a shard that is not in the map")

    @property
    def buckets(self) -> int:
        return len(self.owners)

    def shard_of(self, bucket: int) -> str:
        """The name of the shard that owns `bucket`."""
        return self.shards[self.owners[bucket]].name

    @property
    def holders(self) -> list[str]:
        """The names of the shards that buckets may go to."""
        return [shard.name for shard in self.shards if shard.name not in self.draining]

    def owned_by(self, name: str) -> list[int]:
        """The buckets of the shard `name`, in order."""
        indices = {index for index, shard in enumerate(self.shards) if shard.name == name}
        return [bucket for bucket, owner in enumerate(self.owners) if owner in indices]


def rank(map: BucketMap) -> tuple[Any, ...]:
    """What orders maps of one store: the newer has more. Of one epoch the one that knows of more moves, and then any, for all the same."""
    return (map.epoch, sum(map.epochs), map.epochs, map.owners, map.shards, map.draining, map.named, map.version)


def first_map(store: str, urls: Sequence[str], buckets: int) -> BucketMap:
    """The map that a store begins with: buckets dealt out evenly, in runs, to shards s1, s2, … in the order of `urls`."""
    shards = tuple(Shard(f"s{index}", url) for index, url in enumerate(urls, 1))
    return BucketMap(store, 1, shards, tuple(bucket * len(shards) // buckets for bucket in range(buckets)), len(shards))


def with_shard(map: BucketMap, url: str) -> BucketMap:
    """The next map, in which the server at `url` is a shard without buckets, under a name of its own; `map` where it is one already."""
    if any(shard.url == url for shard in map.shards):
        return map
    taken = [int(shard.name[1:]) for shard in map.shards if shard.name[:1] == "s" and shard.name[1:].isdigit()]
    number = max([map.named, *taken]) + 1
    return attrs.evolve(map, epoch=map.epoch + 1, shards=(*map.shards, Shard(f"s{number}", url)), named=number)


def without_shard(map: BucketMap, name: str) -> BucketMap:
    """The next map, without a shard that has no buckets any more; `map` where it is not in it. MalformedMap while it has some."""
    if all(shard.name != name for shard in map.shards):
        return map
    if map.owned_by(name):
        raise MalformedMap(f"shard {name} still has buckets")
    shards = tuple(shard for shard in map.shards if shard.name != name)
    places = {shard.name: index for index, shard in enumerate(shards)}
    owners = tuple(places[map.shards[owner].name] for owner in map.owners)
    draining = tuple(one for one in map.draining if one != name)
    return attrs.evolve(map, epoch=map.epoch + 1, shards=shards, owners=owners, draining=draining)


def with_owner(map: BucketMap, bucket: int, name: str, epoch: int) -> BucketMap:
    """The next map, in which the shard `name` has `bucket` since `epoch`; `map` where that is old. KeyError for a shard that is not in it.

    What comes late, from whoever slept between opening a bucket and saying so, has a lower epoch and changes nothing.
    """
    if epoch <= map.epochs[bucket]:
        return map
    place = {shard.name: index for index, shard in enumerate(map.shards)}[name]
    owners = (*map.owners[:bucket], place, *map.owners[bucket + 1 :])
    epochs = (*map.epochs[:bucket], epoch, *map.epochs[bucket + 1 :])
    return attrs.evolve(map, epoch=map.epoch + 1, owners=owners, epochs=epochs)


def with_draining(map: BucketMap, name: str, is_draining: bool) -> BucketMap:
    """The next map, in which the shard `name` is drained, or is not; `map` where that is so, or there is no such shard."""
    if is_draining == (name in map.draining) or all(shard.name != name for shard in map.shards):
        return map
    draining = (*map.draining, name) if is_draining else tuple(one for one in map.draining if one != name)
    return attrs.evolve(map, epoch=map.epoch + 1, draining=draining)


def with_version(map: BucketMap, version: int) -> BucketMap:
    """The next map, whose store is written in `version`; `map` where it is, or in a later one."""
    return map if map.version >= version else attrs.evolve(map, epoch=map.epoch + 1, version=version)


def encode_map(map: BucketMap) -> bytes:
    """A map as JSON; `decode_map` reads it."""
    fields = {
        **{"v": map.version, "store": map.store, "epoch": map.epoch, "shards": map.shards, "owners": map.owners},
        **{"named": map.named, "epochs": map.epochs, "draining": map.draining},
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_map(content: bytes) -> BucketMap:
    """The map in `content`. Raises MalformedMap for anything else."""
    fields = _fields(content, "map", MAX_MAP_BYTES)
    store, epoch, shards, owners = (fields.get(name) for name in ("store", "epoch", "shards", "owners"))
    if not isinstance(store, str) or type(epoch) is not int or epoch < 1 or not isinstance(shards, list) or not isinstance(owners, list):
        raise MalformedMap("a map takes store, epoch, shards and owners")
    if not all(isinstance(shard, list) and len(shard) == 2 and all(isinstance(part, str) and part for part in shard) for shard in shards):
        raise MalformedMap("a map's shards are [name, url] pairs")
    if not all(type(owner) is int for owner in owners):
        raise MalformedMap("a map's owners are whole numbers")
    named = fields.get("named", 0)
    if type(named) is not int or named < 0:
        raise MalformedMap("a map's number of names is a whole number")
    epochs, draining = fields.get("epochs"), fields.get("draining")
    if not isinstance(epochs, list) or not epochs or not all(type(one) is int for one in epochs):
        raise MalformedMap("a map's epochs are whole numbers")
    if not isinstance(draining, list) or not all(isinstance(name, str) for name in draining):
        raise MalformedMap("a map's shards that are drained are names")
    pairs = tuple(Shard(*shard) for shard in shards)
    return BucketMap(store, epoch, pairs, tuple(owners), named, tuple(epochs), tuple(draining), fields["v"])


class StoreRecord(NamedTuple):
    """What `taba:store` says on each shard: which store this is, which shard of it, and the shards that it began with.

    `is_whole`: of a cluster, whose keys lie on many nodes: all of them were made, so what is missing is lost.
    """

    store: str
    buckets: int
    shard: str
    urls: tuple[str, ...]
    is_whole: bool = False
    version: int = versions.HERE.stores[0]


def encode_record(record: StoreRecord) -> bytes:
    """A record as JSON; `decode_record` reads it."""
    fields = {
        **{"v": record.version, "store": record.store, "buckets": record.buckets, "shard": record.shard, "urls": record.urls},
        "whole": record.is_whole,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_record(content: bytes) -> StoreRecord:
    """The record in `content`. Raises MalformedMap for anything else."""
    fields = _fields(content, "record of a store", MAX_MAP_BYTES)
    store, buckets, shard, urls = (fields.get(name) for name in ("store", "buckets", "shard", "urls"))
    if not isinstance(store, str) or type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS or not isinstance(shard, str) or not shard:
        raise MalformedMap("a record of a store takes store, buckets and shard")
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) and url for url in urls):
        raise MalformedMap("a record of a store takes the URLs that it began with")
    return StoreRecord(store, buckets, shard, tuple(urls), fields.get("whole") is True, fields["v"])


def _fields(content: bytes, what: str, most: int) -> dict[str, Any]:
    if len(content) > most:
        raise MalformedMap(f"a {what} of {len(content)} bytes; at most {most}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedMap(f"a {what} that is no JSON: {content[:60]!r}") from None
    if not isinstance(fields, dict):
        raise MalformedMap(f"a {what} that is no object")
    version, reads = fields.get("v"), versions.HERE.stores
    if type(version) is not int or version not in reads:
        cure = ": a step back is not possible, take the newer one" if type(version) is int and version > max(reads) else ""
        raise OtherVersion(f"a {what} of version {str(version)[:20]}, where this Taba reads version {', '.join(map(str, reads))}{cure}")
    return fields
