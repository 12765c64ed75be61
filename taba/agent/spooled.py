"""What the file of a spool has: its tables, what a row that is whole says, and by what it is known that something of it is damaged."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from taba.agent.database import Transaction
from taba.agent.outbox import OtherVersion
from taba.batch import BatchId
from taba.bounds import MAX_BUCKETS, MAX_EXACT_INT, MiB

CHECKED_ROW = 1 << 56  # ids of rows of `lost` from here on are checksums; an Agent of before numbered them

VERSION = 9  # of the file, and of the table in it

# places in the journal: the outbox's table; which manifest is the spool's (an Agent that knows of none clears that when it starts); what is
# written to see whether anything can be; that there may have been a later table than is known, in a file of before
TABLE, LISTED, TRIED, DOUBTED = 0, 1, 2, 3

# the version is in the schema, too: of a file in which the one alone is another something is damaged
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS batches (
  id INTEGER PRIMARY KEY, stream BLOB NOT NULL, bucket INTEGER NOT NULL, number INTEGER NOT NULL, length INTEGER NOT NULL,
  created REAL NOT NULL, boot INTEGER NOT NULL, age INTEGER NOT NULL, events INTEGER NOT NULL, crc INTEGER NOT NULL, key BLOB NOT NULL,
  content BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS identity ON batches (stream, bucket, number, length, events, created);
CREATE TABLE IF NOT EXISTS aside (
  id INTEGER PRIMARY KEY, stream BLOB, bucket INTEGER, number INTEGER, reason TEXT, content BLOB);
CREATE TABLE IF NOT EXISTS journal (place INTEGER PRIMARY KEY, outbox BLOB NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lost (id INTEGER PRIMARY KEY, salvage TEXT, stream BLOB, bucket INTEGER, number INTEGER, events INTEGER);
CREATE TABLE IF NOT EXISTS format_{VERSION} (place INTEGER PRIMARY KEY);
"""

_COMMENT = re.compile(r"\s*/\*[^*]*\*/")
# columns, and between what their values lie
_WHOLE = {
    "bucket": (0, MAX_BUCKETS - 1),
    "number": (1, MAX_EXACT_INT),
    "length": (0, MAX_EXACT_INT),
    "boot": (0, MAX_EXACT_INT),
    "age": (-1, MAX_EXACT_INT),
    "events": (0, MAX_EXACT_INT),
    "crc": (0, MAX_EXACT_INT),
}
COLUMNS = "stream, bucket, number, length, created, boot, age, events, crc, key, content"


def none_of(columns: Iterable[str]) -> str:
    """The condition, in SQL, that one of these columns has what was never written here."""
    of_each = (f"typeof({column}) != 'integer' OR {column} NOT BETWEEN {_WHOLE[column][0]} AND {_WHOLE[column][1]}" for column in columns)
    return " OR ".join(("typeof(stream) != 'blob' OR length(stream) != 16", *of_each))


NAMED = ("bucket", "number", "events")  # beside the stream, of what is told of a batch that is not there
_INDEXED = ("stream", "bucket", "number", "length", "events", "created")  # what the index says of a row
# what is asked for and must not be found: in the table, and of what is lost, …
MALFORMED = (
    "batches NOT INDEXED WHERE typeof(key) != 'blob' OR typeof(content) != 'blob' OR length(content) != length OR typeof(created) != 'real'"
    f" OR {none_of(_WHOLE)}",
    f"lost WHERE {none_of(NAMED)}",
)
# … and of the index, by which rows are found: what says something else than its row, and rows that it has not
UNLIKE = (
    "batches AS said INDEXED BY identity LEFT JOIN batches AS row NOT INDEXED ON row.id = said.id"
    f" WHERE ({', '.join(f'said.{column}' for column in _INDEXED)}) IS NOT ({', '.join(f'row.{column}' for column in _INDEXED)})",
    "(SELECT count(*) AS said FROM batches INDEXED BY identity), (SELECT count(*) AS kept FROM batches NOT INDEXED) WHERE said != kept",
)


def schema_of(database: sqlite3.Connection) -> dict[str, str | None]:
    """By name, without comments: what a batch says of itself, such as its version, is no part of the file's format."""
    found = database.execute("SELECT name, sql FROM sqlite_master")
    return {name: _COMMENT.sub("", sql) if isinstance(sql, str) else sql for name, sql in found}


def _expected() -> dict[str, str | None]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA)
        return schema_of(database)


EXPECTED = _expected()


def checksum(id: BatchId, created: tuple[float, int, int], events: int, key: bytes, content: bytes | memoryview) -> int:
    """Of all that a row says."""
    return zlib.crc32(content, zlib.crc32(key, zlib.crc32(repr((*id, *created, events)).encode())))


def is_whole(row: tuple[Any, ...]) -> bool:
    """Whether what was read is what was written."""
    try:
        stream, bucket, number, length, *created, events, crc, key, content = row
        return bool(length == len(content)) and checksum(BatchId(stream, bucket, number), tuple(created), events, key, content) == crc
    except (TypeError, ValueError):
        return False


def lost_row(id: BatchId, events: int) -> int:
    """The id of the row that names this as lost."""
    return CHECKED_ROW | int.from_bytes(blake2b(repr((*id, events)).encode(), digest_size=7).digest(), "big")


def is_lost_row(row: int, id: BatchId, events: int) -> bool:
    """Whether what was read is what was written."""
    return row < CHECKED_ROW or row == lost_row(id, events)


def is_no_text(error: sqlite3.Error) -> bool:
    """Whether a row says of a column that it is a text, and it is none: the row's fault, and no trouble of the disk's."""
    return "decode to UTF-8" in f"{error}"


def is_trouble(error: Exception) -> bool:
    """Whether the disk or the directory is at fault: of a file that is damaged reading fails, too, and what can be read of it is read."""
    return any(words in f"{error}" for words in ("unable to open", "is full", "is locked"))


def write_nothing(database: sqlite3.Connection) -> None:
    with Transaction(database):
        database.execute(f"INSERT OR REPLACE INTO journal VALUES ({TRIED}, x'', x'')")


def check(database: sqlite3.Connection, path: str, is_full: bool) -> bool:
    """Whether there is something in the file; with `is_full` nothing is written, and there may be nothing in it.

    Raises sqlite3.DatabaseError where it is no whole spool of this version, OtherVersion where it is one of another.
    """
    run = database.execute
    run("PRAGMA synchronous=FULL")
    run(f"PRAGMA journal_size_limit={8 * MiB}")
    run("PRAGMA cache_size=-2000")
    version = run("PRAGMA user_version").fetchone()[0]
    schema = schema_of(database)
    if not schema and run("PRAGMA page_count").fetchone()[0] <= 1:
        if is_full:
            return False
        doubt = f"INSERT INTO journal VALUES ({DOUBTED}, x'', x'')"  # what was before, if anything, is gone
        database.executescript(f"BEGIN; {SCHEMA} {doubt}; PRAGMA user_version={VERSION}; COMMIT")
    elif version != VERSION and "batches" in schema and schema != EXPECTED:
        raise OtherVersion(
            f"{path} is of format {version}; this version reads {VERSION}: let that version's Agent send what it holds, or remove it"
        )
    elif version != VERSION or schema != EXPECTED:  # one of the two alone is damage, not another format
        raise sqlite3.DatabaseError("its first page is damaged")
    if not is_full:
        write_nothing(database)  # it must be to be written as well
    (found,) = run("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(f"{found}".split()))
    if any(run(f"SELECT 1 FROM {malformed} LIMIT 1").fetchone() for malformed in MALFORMED):
        raise sqlite3.DatabaseError("a row of it is none")
    if any(run(f"SELECT 1 FROM {unlike} LIMIT 1").fetchone() for unlike in UNLIKE):
        raise sqlite3.DatabaseError("its index is not that of its rows")
    return True


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is at fault, and not its disk, or the moment."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
