"""What a move asks of the outside, one value at a time. Pure; `mover` carries them out.

A generator yields a Look, LookEverywhere, Step, Scan or Publish, and is sent what came of it. Nothing else happens in between: a move
that ends between any two of them, by kill or by sleep, has done all of the one and nothing of the other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from taba.bounds import KiB, MiB
from taba.errors import TabaError
from taba.shard.buckets import dirty_key, lease_key, owner_key, prefix_of, staging_prefix
from taba.shard.dirty import Command

MAX_CHUNK_BYTES = 1 * MiB  # of values in one step: a shard answers nobody else for a millisecond or two
SMALL_KEY_BYTES = 64 * KiB  # a key up to this is copied whole, many in one step
MEASURED_KEYS = 500  # whose type, expiry and size are asked in one step
UNLINKED_KEYS = 2000  # in one step


class Look(NamedTuple):
    """Read the bucket's owner key on `shard`; sent a Seen."""

    shard: str


class LookEverywhere(NamedTuple):
    """Read the bucket's owner key on all shards; sent an Everywhere."""


class Seen(NamedTuple):
    """An owner key, and whether the mover whose token it holds may live: it has not yet been seen to give no sign for long enough."""

    content: bytes | None
    is_alive: bool = False


class Everywhere(NamedTuple):
    """The bucket's owner keys by shard, and the epoch that the newest map gives it."""

    seen: dict[str, Seen]
    epoch: int


class Step(NamedTuple):
    """Carry out `commands` on `shard`, if the owner key there says exactly `expects` (None: is missing); sent a Done.

    One that writes is one transaction, which WATCHes the owner key. One that `is_read` reads the owner key after the rest,
    and errors are values among its replies. One that `confirms` then waits until all that the shard took so far is as
    durable as the shard can make it. `size`: bytes of values on their way; one that `is_paced` waits for the rate. One that begins to
    have the bucket go to the shard `goes_to` is Overtaken where the newest map, of which it WATCHes what its own shard has, does not
    name that as one that buckets may go to. Each is carried out only by the very server, with the very history, that this move met
    first on that shard: else it begins anew.
    """

    name: str
    shard: str
    expects: bytes | None
    commands: Sequence[Command]
    is_read: bool = False
    confirms: bool = False
    size: int = 0
    is_paced: bool = False
    goes_to: str = ""


class Done(NamedTuple):
    """`replies` is None where the owner key was another: nothing was done. `problem`: why it could not be confirmed."""

    replies: list[Any] | None
    problem: str = ""


class Scan(NamedTuple):
    """All keys of the bucket on each of `shards`, without its owner key; sent {shard: keys}."""

    shards: Sequence[str]


class Publish(NamedTuple):
    """Have the map say, on all shards, that `shard` owns the bucket since `epoch`, unless it says something newer; sent None."""

    shard: str
    epoch: int


Steps = Generator[Look | LookEverywhere | Step | Scan | Publish, Any, Any]


class Changed(TabaError):
    """A shard is another server now, or has another history: what was done there may be gone, in parts. Begin this bucket anew."""


class Overtaken(TabaError):
    """Another mover has this bucket in hand, or has finished or undone this move; nothing here is lost, look again."""


class Occupied(TabaError):
    """Another mover, which is alive, has this bucket in hand."""


class MoveFailed(TabaError):
    """This move cannot be made; the bucket is where it was, and open."""


class Outpaced(MoveFailed):
    """Writers are faster than this move copies; the bucket is where it was, and open, and another try would end so too."""


def is_content(bucket: int, key: bytes) -> bool:
    """Whether `key` moves with the bucket: it is not one of the shard layer's own."""
    own = (owner_key(bucket), lease_key(bucket), dirty_key(bucket))
    return key.startswith(prefix_of(bucket)) and key not in own and not key.startswith(staging_prefix(bucket))


def staged(bucket: int, token: str, key: bytes) -> bytes:
    """Where the copy of `key` stands until the bucket opens."""
    return staging_prefix(bucket) + token.encode() + b":" + key[len(prefix_of(bucket)) :]
