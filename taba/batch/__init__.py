"""Batches and envelopes: bytes in, values out. Written by Agents (and for `POST /v1/events`), read by Servers.

1. A batch is encoded once; (stream, bucket, number) is its identity, and its bytes never change.
2. What may change when it is sent again travels beside it in the envelope: `follows`, the number before it, and the `nonce` under which
   its stream is open; beside posted events with a key also which part of which post they are.
3. What is wrong with a whole batch is MalformedBatch; what is wrong with a field or with values in a list is that column's own `error`, and
   lengths that do not add up are their section's. What is of a version that is not read here is UnknownVersion: nothing is wrong with it,
   and it is never refused.

A batch is msgpack `[5, stream, bucket, number, [events, section, events, section, …], meanings]`. A section has columns of one Type; it is
a bin with its number of events before it, so that its extent is known when it does not decode. In it is msgpack
`[type, fields, counts, times, values]`: `fields` a list with a bin for each column, Tab, NUL and Client, as the store names the State;
`counts` how many rows each has, little-endian uint32 bytes; `times` those of all columns one after the other, little-endian float64 bytes;
`values` likewise or, of columns in which one is not a float, a list with a bin for each column: its values' msgpack, one after the other.
Where the events that columns stand for are not their rows, their numbers are a sixth item, uint32 bytes: 0 for what Agents record
themselves. A Type that is `absolute` gets rows `[ring id, position, sum]`: what
one process has added up to a position of its ring, so that neither loss nor repetition nor order does harm; at RING_ENDED the process is
dead, at RING_GONE nothing of that ring is still to come.

A section of States that were folded at the edge is msgpack `[type, fields, counts, least, greatest, dumps, edge]`: `counts` how many
events each stands for, as above; `least` and `greatest` the times of the first and the last of these, float64 bytes; `dumps` a list with
a bin for each column, which the Type's Handler made in its version `edge`.

`meanings` is a bin, empty or with msgpack `[[tab, unit, description], …]`: what
applications say that Tabs mean, each said once a stream, and again where it changes. One that does not decode is counted, and harms no
Event.

An envelope is `{"v": 2, "agent", "host", "now": the sender's Unix time, "store": the id of the store that the sender knows or nil,
"entries": [entry, …]}`. An entry is a batch `{"batch", "follows", "nonce", "key"?}`, or a header without
body `{"do": "open" | "mark" | "end", "stream", "bucket", "nonce"?, "anew"?}`. The answer is `{"verdicts": [[word, detail, why], …],
"store_age": minutes or nil}`, one verdict an entry, in order.
"""

from __future__ import annotations

from taba.batch.columns import (
    BAD_COLUMN,
    MAX_BATCH_MEANINGS,
    MAX_DUMP_BYTES,
    MAX_LIST_BYTES,
    MAX_LIST_VALUES,
    NOT_COVERED,
    RING_ENDED,
    RING_GONE,
    AtEdge,
    BadColumn,
    Batch,
    Block,
    Column,
    DecodedSection,
    Meaning,
    Packed,
    columns_of,
    decoded_sections,
    field_of,
    uint32s,
)
from taba.batch.envelope import (
    APPLIED,
    CONTENT_TYPE,
    DOES,
    END,
    ENDED,
    ENVELOPE_VERSION,
    GAP,
    KEYS_FULL,
    LATER,
    MARK,
    MAX_STORE_AGE,
    NONCE,
    NOT_OPEN,
    NUMBER,
    OPEN,
    REFUSED,
    VERDICTS_HEADER,
    Entry,
    Envelope,
    EnvelopeAnswer,
    Header,
    SentBatch,
    Verdict,
    decode_envelope,
    decode_verdicts,
    encode_envelope,
    encode_verdicts,
)
from taba.batch.identity import (
    KEY_BYTES,
    MAX_STORE_ID,
    NONCE_BYTES,
    STREAM_BYTES,
    BatchId,
    KeyPart,
)
from taba.batch.reading import (
    MAX_BATCH_EVENTS,
    MAX_CACHED_FIELDS,
    MAX_CACHED_NAME,
    MAX_CACHED_NAMES,
    Fields,
    decode_batch,
    plain_batch,
    reading_batch,
)
from taba.batch.writing import (
    BATCH_VERSION,
    Section,
    edges_of,
    encode_batch,
    encode_meanings,
    encode_sections,
    joined,
    pack_bin,
    pack_values,
    sections_of,
)
