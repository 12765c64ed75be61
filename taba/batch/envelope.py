"""Envelopes, in which batches travel, and the verdicts on what was in one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import msgpack

from taba import parts, versions
from taba.batch.identity import KEY_BYTES, MAX_STORE_ID, NONCE_BYTES, check_bucket, check_stream
from taba.bounds import MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES
from taba.counting import BAD, plain_reader, unpack_counted
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion

_part = parts.find("taba.batch._entries")  # without it Python does it all

ENVELOPE_VERSION = 2
VERDICTS_HEADER = "Taba-Verdicts"  # its presence says that the answer is a Server's own, not a proxy's
CONTENT_TYPE = "application/msgpack"
MAX_FIELDS = 16  # of an envelope or an entry, known here or not
MAX_STORE_AGE = 2**32 - 2  # minutes: eight thousand years

APPLIED = "applied"  # detail: the mark
LATER = "later"  # detail: seconds; why: a sentence, or nothing
GAP = "gap"  # detail: the mark; why: one of the next three
KEYS_FULL = "too_many_keys: "  # so the sentence begins where a Server has no room for the key of a posted batch's Client
REFUSED = "refused"  # detail: the reason
OPEN = "open"  # detail: the nonce; why: the mark
MARK = "mark"  # detail: the mark
ENDED = "ended"  # detail: 0

NUMBER = "number"  # the mark is another than the one that the batch follows
NONCE = "nonce"  # the stream was opened anew since
NOT_OPEN = "not open"  # the bucket knows nothing of the stream

END = "end"
DOES = (OPEN, MARK, END)


class SentBatch(NamedTuple):
    """A batch in an envelope, and what travels beside it. `key`: the bytes of a KeyPart."""

    batch: bytes
    follows: int
    nonce: bytes
    key: bytes = b""


class Header(NamedTuple):
    """A header without body: what to do with a stream in a bucket. `nonce` only to end what is open under that one, and no other; `anew`
    only to open under another nonce what may be open, so that nothing that was sent before is folded any more."""

    do: str
    stream: bytes
    bucket: int
    nonce: bytes = b""
    anew: bool = False


Entry = SentBatch | Header


class Verdict(NamedTuple):
    """What became of one entry; the words above say what `detail` and `why` are."""

    word: str
    detail: int | float | str | bytes
    why: str | int = ""


class EnvelopeAnswer(NamedTuple):
    """The verdicts on an envelope's entries, in order, and the store's age in minutes, None where it is not known."""

    verdicts: list[Verdict]
    store_age: int | None


def encode_envelope(
    agent: str, host: str, now: float, store: str | None, entries: Sequence[Entry], version: int = ENVELOPE_VERSION
) -> bytes:
    """The bytes of an envelope. The caller keeps the bounds."""
    packed = [
        {"batch": entry.batch, "follows": entry.follows, "nonce": entry.nonce, **({"key": entry.key} if entry.key else {})}
        if isinstance(entry, SentBatch)
        else _packed(entry)
        for entry in entries
    ]
    return cast(bytes, msgpack.packb({"v": version, "agent": agent, "host": host, "now": now, "store": store, "entries": packed}))


def _packed(header: Header) -> dict[str, Any]:
    more: dict[str, Any] = {"nonce": header.nonce} if header.nonce else {}
    if header.anew:
        more["anew"] = True
    return {"do": header.do, "stream": header.stream, "bucket": header.bucket, **more}


class Envelope(NamedTuple):
    """A decoded envelope. `now`: its sender's Unix time when it was sent; `store`: the id of the store that the sender knows."""

    agent: str
    host: str
    now: float
    store: str | None
    entries: list[Entry]


def decode_envelope(content: bytes) -> Envelope:
    """The envelope in `content`. Raises MalformedBatch for what is none, UnknownVersion for one that is not read here."""
    if len(content) > MAX_ENVELOPE_BYTES:
        raise MalformedBatch(f"an envelope of {len(content)} bytes; at most {MAX_ENVELOPE_BYTES}")
    found = None if _part is None else _part.read(content, versions.HERE.envelopes, MAX_ENVELOPE_BATCHES, SentBatch)
    if found is not None:
        return Envelope(*_checked(*found[:4]), found[4])
    reader = plain_reader(len(content))
    reader.feed(content)
    fields: dict[Any, Any] = {}
    try:
        for _ in range(_some_fields(reader)):
            name = reader.unpack()
            fields[name] = _entries(reader, fields) if name == "entries" else reader.unpack()
    except BAD as error:
        _check_version(fields)  # what is wrong may be what is new
        raise MalformedBatch(f"envelope: {type(error).__name__}: {error}"[:200]) from None
    _check_version(fields)
    if reader.tell() != len(content):
        raise MalformedBatch("more than an envelope")
    told = _checked(*[fields.get(name) for name in ("agent", "host", "now", "store")])
    entries = fields.get("entries")
    if not isinstance(entries, list):
        raise MalformedBatch("an envelope has entries")
    return Envelope(*told, [_entry(entry) for entry in entries])


def _checked(agent: Any, host: Any, now: Any, store: Any) -> tuple[str, str, float, str | None]:
    """These, if an envelope may say so."""
    if not isinstance(agent, str) or not isinstance(host, str) or len(agent) > 255 or len(host) > 255:
        raise MalformedBatch("an envelope names its Agent and host")
    if not isinstance(now, float) or not 0 <= now < 2.0**40:
        raise MalformedBatch("an envelope tells its sender's Unix time")
    if store is not None and (not isinstance(store, str) or len(store) > MAX_STORE_ID):
        raise MalformedBatch("the id of a store is a text, or nil")
    return agent, host, now, store


def _check_version(fields: dict[Any, Any]) -> None:
    version = fields.get("v")
    if type(version) is not int:
        raise MalformedBatch("no envelope")
    if version not in versions.HERE.envelopes:
        raise UnknownVersion("envelope", version, versions.HERE.envelopes)


def _some_fields(reader: Any) -> int:
    count: int = reader.read_map_header()
    if count > MAX_FIELDS:
        raise ValueError(f"a map of {count} fields")
    return count


def _entries(reader: Any, fields: dict[Any, Any]) -> list[dict[Any, Any]]:
    if "v" in fields:
        _check_version(fields)  # those of another version may be anything
    count = reader.read_array_header()
    if count > MAX_ENVELOPE_BATCHES:
        raise ValueError(f"an envelope takes a list of at most {MAX_ENVELOPE_BATCHES} entries")
    found = []
    for _ in range(count):
        size = _some_fields(reader)
        items = list(islice(reader, 2 * size))
        if len(items) != 2 * size:
            raise ValueError("cut off")
        found.append(dict(zip(items[::2], items[1::2], strict=True)))
    return found


def _entry(fields: dict[Any, Any]) -> Entry:
    if "do" in fields:
        do, stream, bucket, nonce = fields["do"], fields.get("stream"), fields.get("bucket"), fields.get("nonce", b"")
        if do not in DOES:
            raise MalformedBatch(f"a header takes {', '.join(DOES)}, not {do!r}"[:200])
        check_stream(stream)
        check_bucket(bucket)
        if not isinstance(nonce, bytes) or len(nonce) not in (0, NONCE_BYTES):
            raise MalformedBatch(f"a nonce takes {NONCE_BYTES} bytes")
        anew = fields.get("anew", False)
        if not isinstance(anew, bool):
            raise MalformedBatch("anew is true or false")
        return Header(do, cast(bytes, stream), cast(int, bucket), nonce, anew)
    batch, follows, nonce, key = fields.get("batch"), fields.get("follows"), fields.get("nonce", b""), fields.get("key", b"")
    if not isinstance(batch, bytes) or type(follows) is not int or not 0 <= follows < 2**63:
        raise MalformedBatch("an entry takes a batch and the number that it follows")
    if not isinstance(nonce, bytes) or not isinstance(key, bytes) or len(nonce) != NONCE_BYTES or len(key) not in (0, KEY_BYTES):
        raise MalformedBatch(f"beside a batch stands a nonce of {NONCE_BYTES} bytes, and for posted events a key's part of {KEY_BYTES}")
    return SentBatch(batch, follows, nonce, key)


def encode_verdicts(verdicts: Sequence[Verdict], store_age: int | None) -> bytes:
    """The body of the answer to an envelope. `store_age`: in minutes, None where the Server does not know it."""
    return cast(bytes, msgpack.packb({"verdicts": verdicts, "store_age": store_age}))


_DETAILS: dict[str, tuple[tuple[type, ...], type]] = {  # what a verdict's detail and why may be
    APPLIED: ((int,), str),
    LATER: ((int, float), str),
    GAP: ((int,), str),
    REFUSED: ((str,), str),
    OPEN: ((bytes,), int),
    MARK: ((int,), str),
    ENDED: ((int,), str),
}


def decode_verdicts(content: bytes, entries: int) -> EnvelopeAnswer:
    """The answer to an envelope of so many entries. Raises NoVerdicts for anything else."""
    try:
        fields = unpack_counted(content, 3, 4 * entries + MAX_FIELDS)
    except ValueError as error:
        raise NoVerdicts(f"verdicts: {error}"[:200]) from None
    verdicts, age = (fields.get("verdicts"), fields.get("store_age")) if isinstance(fields, dict) else (None, None)
    if not isinstance(verdicts, list) or len(verdicts) != entries:
        raise NoVerdicts(f"not the verdicts on {entries} entries")
    if age is not None and (type(age) is not int or not 0 <= age <= MAX_STORE_AGE):
        raise NoVerdicts(f"store age {age!r}"[:200])
    for verdict in verdicts:
        if not isinstance(verdict, list) or len(verdict) != 3 or not isinstance(verdict[0], str) or verdict[0] not in _DETAILS:
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
        word, detail, why = verdict
        details, whys = _DETAILS[word]
        if type(detail) not in details or type(why) is not whys or (isinstance(detail, int) and detail < 0):
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
        if (word == GAP and why not in (NUMBER, NONCE, NOT_OPEN)) or (word == OPEN and (len(detail) != NONCE_BYTES or cast(int, why) < 0)):
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
    return EnvelopeAnswer([Verdict(*verdict) for verdict in verdicts], age)
