"""Each format has the version that it says: a sample of it is pinned to that, so that nobody changes the one and forgets the other.

Formats change without a bridge: what another version wrote is refused in a line, and never misread. That works only where a version stands
for one format, and a format for one version. Whoever changes a format gives it a new version, and pins that here in place of the old one.
"""

from __future__ import annotations

import hashlib
import json
import struct

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import batch, damage, desk, ring, versions
from taba.agent import outbox, spooled
from taba.agent.outbox import Covered, EncodedBatch, Outbox, Skipped, Table
from taba.batch import AtEdge, BatchId, Column, Header, KeyPart, Meaning, SentBatch, Verdict
from taba.ring import Sum
from taba.server.fold import deadletters
from taba.server.keep import jobs
from taba.shard import buckets
from taba.shard.buckets import BucketMap, Owner, Shard, StoreRecord
from tests.agent.moments import at
from tests.agent.outboxes import Memory

STREAM = b"s" * batch.STREAM_BYTES
NONCE = b"n" * batch.NONCE_BYTES
KEY = KeyPart(b"k" * 16, b"d" * 16, 1).encode()
TIMES = struct.pack("<2d", 1.0, 2.0)
COLUMNS = [
    Column("web/1", "hits", "TotalsCounter", TIMES, struct.pack("<2d", 1.0, 2.5)),
    Column("web/1", "load", "Gauge", TIMES, ["text", [1, {"a": None}]]),
    Column("web/2", "hits", "TotalsCounter", TIMES, struct.pack("<2d", 3.0, 4.0)),
    Column("web/2", "now", "UpDown", TIMES, struct.pack("<2d", 3.0, 4.0), 7),
    Column("web/2", "many", "CounterGroup", TIMES[:8], AtEdge(3, b"dump", 2.0), 5),
]
SHARDS = (Shard("s1", "redis://a:1"), Shard("s2", "redis://b:2"))

PINNED = {
    "ring": (3, "14d52f89423f4553"),
    "outbox": (8, "135b281dcdc2863a"),
    "spool": (9, "7131d1aca8fe0503"),
    "batch": (5, "d32f049ed2fc99ff"),
    "envelope": (2, "fb6c5781c8a960c5"),
    "store record": (3, "44c16c75e1fe8c4f"),
    "dead letter": (1, "d7ed1669e1dd8fa7"),
    "job record": (1, "5208d7b410684714"),
    "register and pin": (2, "7eb8546af63c23e3"),
    "desk": ("tabadsk3", "de72d0fdf50bdb15"),
}
"""By the name of a format its version, and the digest of a sample."""


def digest(*samples: object) -> str:
    found = hashlib.blake2b(digest_size=8)
    for sample in samples:
        found.update(sample if isinstance(sample, bytes) else repr(sample).encode())
        found.update(b"\0")
    return found.hexdigest()


def ring_sample() -> str:
    places = sorted((name, getattr(ring, name)) for name in dir(ring) if name.endswith(("_OFFSET", "_OFFSETS", "_SHIFT", "_MASK")))
    header = ring.encode_header(1 << 20, ring.ACCELERATED, 7, b"i" * 16, 1.0, "web/1")
    entries = [ring.encode_entry("Gauge", "load", "s", "how long", has_cell) for has_cell in (False, True)]
    words = ring.commit_word(5, ring.FLAG_BYTES, 3), ring.value_word(9, 11)
    return digest(places, header, *entries, words, ring.encode_sum(Sum(3, 4.5)), tuple(ring.layout(1 << 20)), ring.drops_range(1 << 20))


def outbox_sample() -> str:
    memory = Memory(outbox.MIN_OUTBOX_BYTES)
    Outbox.format(memory, b"i" * 16, 7)
    id = BatchId(STREAM, 3, 1)
    table = Table(
        covered=(Covered(b"r" * 16, 1, 5, 9),),
        retired=(b"q" * 16,),
        settled=(id,),
        recorded=9,
        dropped=(("ring_full", 2),),
        skipped=(Skipped(id, 0, 1, 4),),
        opened=((STREAM, b"\x08", b""),),
        sequence=2,
        lost=1,
        newest=at(1.0).fields(),
        salvage="x",
    )
    Outbox(memory).append(table, [EncodedBatch(id, at(1.0), 4, b"content", KEY)])
    return digest(bytes(memory.content))


def spool_sample() -> str:
    return digest(spooled.SCHEMA, spooled.checksum(BatchId(STREAM, 3, 1), at(1.0).fields(), 4, KEY, b"content"))


def batch_sample() -> str:
    return digest(batch.encode_batch(STREAM, 3, 1, COLUMNS, [Meaning("load", "s", "how long")]))


def envelope_sample() -> str:
    entries: list[SentBatch | Header] = [
        SentBatch(b"batch", 0, NONCE),
        SentBatch(b"batch", 1, NONCE, KEY),
        *(Header(do, STREAM, 3, NONCE) for do in batch.DOES),
    ]
    verdicts = [Verdict(batch.APPLIED, 1, ""), Verdict(batch.OPEN, NONCE, 1)]
    return digest(batch.encode_envelope("agent", "host", 1.0, "store", entries), batch.encode_verdicts(verdicts, 5))


def store_sample() -> str:
    owners = [
        Owner("open", 1, "s1"),
        Owner("open", 1, "s1", "s2.token"),
        Owner("sealed", 1, "s2.token"),
        Owner("moved", 2, "s2"),
        Owner("moved", 2, "s2", "s2.token"),
        Owner("moved", 2, "s2", "s2.token", True),
        Owner("arriving", 2, "s2.token"),
    ]
    return digest(
        buckets.encode_map(BucketMap("store", 3, SHARDS, (0, 1, 1, 0), 2, (1, 3, 3, 1), ("s2",))),
        buckets.encode_record(StoreRecord("store", 4, "s1", ("redis://a:1",), True)),
        *map(buckets.encode_owner, owners),
    )


def letter_sample() -> str:
    return digest(
        *(
            deadletters.encode_dead_letter(letter)
            for column in COLUMNS
            for letter in deadletters.dead_letters_of(1.0, "why", "more", column)
        )
    )


def job_sample() -> str:
    record = jobs.Jobs._record(_Named(), jobs.Job("id", "prune", 1.0, False, Clock(), 5))  # type: ignore[arg-type]
    return digest(json.dumps(record))


class _Named:
    _server = "http://a:1"


def desk_sample() -> str:
    layout = {
        name: getattr(desk, name) for name in dir(desk) if name.lstrip("_").isupper() and isinstance(getattr(desk, name), int | tuple)
    }
    return digest(sorted(layout.items()))


FOUND = {
    "ring": lambda: (ring.VERSION, ring_sample()),
    "outbox": lambda: (outbox.VERSION, outbox_sample()),
    "spool": lambda: (spooled.VERSION, spool_sample()),
    "batch": lambda: (batch.BATCH_VERSION, batch_sample()),
    "envelope": lambda: (batch.ENVELOPE_VERSION, envelope_sample()),
    "store record": lambda: (versions.HERE.stores[0], store_sample()),
    "dead letter": lambda: (deadletters._VERSION, letter_sample()),
    "job record": lambda: (jobs.RECORD_VERSION, job_sample()),
    "register and pin": lambda: (damage.VERSION, digest(damage.seal('["text", 5]'))),
    "desk": lambda: (desk.MAGIC.to_bytes(8, "little").decode(), desk_sample()),
}


class Formats(SynchronousTestCase):
    def test_each_is_what_its_version_stands_for(self) -> None:
        self.assertEqual(FOUND.keys(), PINNED.keys())
        for name, find in FOUND.items():
            version, sample = find()
            pinned, of_pinned = PINNED[name]
            if version == pinned:
                self.assertEqual(sample, of_pinned, f"the {name} changed under its version: give it the next, and pin that here")
            else:
                self.assertNotEqual(sample, of_pinned, f"the {name} of version {version} is that of {pinned}: what that wrote is misread")
                self.fail(f"pin the {name} here: {version, sample}")
