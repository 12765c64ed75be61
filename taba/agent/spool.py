"""The spool: where an Agent keeps batches on disk when the outbox ran full, until Servers take them. SQLite, one file an Agent.

1. Batches come in as they are, in one transaction; after it returns they survive a power cut (`synchronous=FULL`).
2. Each row has its checksum: a row that does not match is counted, kept aside, and harms no other.
3. The sum of the batches' bytes never passes the bound: what does not fit raises SpoolFull before anything is written.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence

from taba.agent.ages import Moment
from taba.agent.outbox import EncodedBatch, OtherVersion, StoredBatch
from taba.batch import BatchId
from taba.bounds import MiB
from taba.errors import TabaError

DEFAULT_SPOOL_BYTES = 1024 * MiB
MIN_SPOOL_BYTES = 1 * MiB
ROW_BYTES = 128  # what a row costs beside its content, with its entry in the index
MAX_ASIDE_ROWS = 100  # refused and corrupt batches that are kept to be looked at
MAX_ASIDE_BYTES = 16 * MiB

VERSION = 4  # of the file

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
  id INTEGER PRIMARY KEY, stream BLOB NOT NULL, bucket INTEGER NOT NULL, number INTEGER NOT NULL, length INTEGER NOT NULL,
  created REAL NOT NULL, boot INTEGER NOT NULL, age INTEGER NOT NULL, events INTEGER NOT NULL, crc INTEGER NOT NULL, key BLOB NOT NULL,
  content BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS identity ON batches (stream, bucket, number, length, events, created);
CREATE TABLE IF NOT EXISTS aside (
  id INTEGER PRIMARY KEY, stream BLOB, bucket INTEGER, number INTEGER, reason TEXT, content BLOB);
CREATE TABLE IF NOT EXISTS journal (place INTEGER PRIMARY KEY, outbox BLOB NOT NULL, content BLOB NOT NULL);
"""


class SpoolFull(TabaError):
    """The batches do not fit under the spool's bound, or, with `is_disk`, the disk took them not."""

    def __init__(self, message: str, is_disk: bool = False):
        super().__init__(message)
        self.is_disk = is_disk


class Spool:
    """The spool in the file `path`, of at most `spool_bytes`.

    A file that is no database is renamed to `<path>.corrupt` and `problem` says so. Raises OtherVersion for one of another format,
    OSError or sqlite3.Error when the directory takes no file at all.
    """

    def __init__(self, path: str, spool_bytes: int = DEFAULT_SPOOL_BYTES):
        self.path = path
        self.bound = spool_bytes
        self.problem: str | None = None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            os.replace(path, path + ".corrupt")
            for suffix in ("-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.replace(path + suffix, path + ".corrupt" + suffix)
            self.problem = f"the spool was unreadable ({error}); it is kept as {path}.corrupt"
            self._open()

    def _open(self) -> None:
        if not os.path.exists(self.path):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
        run = self._database.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run(f"PRAGMA journal_size_limit={8 * MiB}")
        run("PRAGMA cache_size=-2000")
        version = run("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._database.close()
                raise OtherVersion(
                    f"{self.path} is of format {version}; this version reads {VERSION}: let that version's Agent send what it holds,"
                    " or remove it"
                )
            run(f"PRAGMA user_version={VERSION}")
        self._database.executescript(_SCHEMA)
        self.batches, self.bytes = run("SELECT count(*), coalesce(sum(length), 0) FROM batches").fetchone()

    @property
    def used(self) -> int:
        return int(self.bytes + self.batches * ROW_BYTES)

    @property
    def free(self) -> int:
        return self.bound - self.used

    def add(self, batches: Sequence[EncodedBatch], journal: tuple[bytes, bytes] | None = None) -> None:
        """Keep all of `batches`, or, raising SpoolFull, none. One that is here already is left as it is.

        `journal`, when given, is kept in the same step: the id of the outbox, and the table that it had no room for.
        """
        needed = sum(len(batch.content) + ROW_BYTES for batch in batches)
        if needed > self.free:
            raise SpoolFull(f"{needed} bytes; {max(self.free, 0)} of {self.bound} are free")
        rows = (
            (*id, len(content), *created.fields(), events, zlib.crc32(content), key, content)
            for id, created, events, content, key in batches
        )
        try:
            with self._transaction():
                before = self._database.total_changes
                self._database.executemany("INSERT OR IGNORE INTO batches VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                added = self._database.total_changes - before
                if journal is not None:
                    self._database.execute("INSERT OR REPLACE INTO journal VALUES (0, ?, ?)", journal)
        except sqlite3.Error as error:
            raise SpoolFull(f"the disk: {error}", is_disk=True) from None
        if added == len(batches):
            self.batches += added
            self.bytes += needed - added * ROW_BYTES
        else:
            self._count()  # some were here already: a kill between this transaction and the outbox's release

    def journal(self, outbox: bytes) -> bytes | None:
        """The table that was kept last for the outbox of this id."""
        row = self._database.execute("SELECT content FROM journal WHERE outbox = ?", (outbox,)).fetchone()
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def last(self, stream: bytes, bucket: int) -> int:
        """The highest number of this lane that is here; 0 where there is none."""
        found = self._database.execute("SELECT max(number) FROM batches WHERE stream = ? AND bucket = ?", (stream, bucket)).fetchone()
        return found[0] or 0

    def next_lane(self, after: tuple[bytes, int] | None) -> tuple[bytes, int] | None:
        """The (stream, bucket) that comes after `after` in the spool, by stream and bucket; None behind the last."""
        stream, bucket = after or (b"", -1)
        row = self._database.execute(
            "SELECT stream, bucket FROM batches WHERE (stream, bucket) > (?, ?) ORDER BY stream, bucket LIMIT 1", (stream, bucket)
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def posted(self) -> list[bytes]:
        """The KeyParts of posted events that are here."""
        return [key for (key,) in self._database.execute("SELECT DISTINCT key FROM batches WHERE length(key)")]

    def rows(self, stream: bytes, bucket: int, after: int, limit: int) -> list[StoredBatch]:
        """The first `limit` batches of this lane with numbers beyond `after`, in order."""
        found = self._database.execute(
            "SELECT number, created, boot, age, events, length, crc, id, key FROM batches"
            " WHERE stream = ? AND bucket = ? AND number > ? ORDER BY number LIMIT ?",
            (stream, bucket, after, limit),
        )
        return [
            StoredBatch(BatchId(stream, bucket, number), Moment.of_fields(*created), events, length, crc, row, key=key)
            for number, *created, events, length, crc, row, key in found
        ]

    def read(self, id: BatchId) -> bytes | None:
        """The bytes of a batch; None where they are gone or do not match their checksum."""
        try:
            row = self._database.execute("SELECT content, crc FROM batches WHERE stream = ? AND bucket = ? AND number = ?", id).fetchone()
        except sqlite3.DatabaseError:
            return None  # a torn page: the caller drops the batch and counts it
        if row is None or not isinstance(row[0], bytes) or zlib.crc32(row[0]) != row[1]:
            return None
        return row[0]

    def forget(self, last: Iterable[BatchId]) -> None:
        """Remove each of these batches, and all with lower numbers of its stream and bucket, in one transaction."""
        with self._transaction():
            for id in last:
                self._delete("stream = ? AND bucket = ? AND number <= ?", id)

    def discard(self, ids: Iterable[BatchId]) -> None:
        """Remove these batches, as far as they are here, in one transaction: they were counted elsewhere."""
        with self._transaction():
            for id in ids:
                self._delete("stream = ? AND bucket = ? AND number = ?", id)

    def keep_aside(self, id: BatchId, reason: str, content: bytes) -> None:
        """Keep the bytes of a batch that will not be sent again, the latest 100 and 16 MiB of them."""
        with self._transaction():
            run = self._database.execute
            run("INSERT INTO aside (stream, bucket, number, reason, content) VALUES (?, ?, ?, ?, ?)", (*id, reason, content))
            kept = run("SELECT id, length(content) FROM aside ORDER BY id DESC").fetchall()
            total = 0
            for place, (row_id, length) in enumerate(kept):
                total += length
                if place >= MAX_ASIDE_ROWS or total > MAX_ASIDE_BYTES:
                    run("DELETE FROM aside WHERE id <= ?", (row_id,))
                    break

    def aside(self) -> list[tuple[int, int, str, bytes]]:
        """(bucket, number, reason, bytes) of what was kept aside, oldest first."""
        return self._database.execute("SELECT bucket, number, reason, content FROM aside ORDER BY id").fetchall()

    def close(self) -> None:
        self._database.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)

    def _delete(self, where: str, id: BatchId) -> None:
        run = self._database.execute
        batches, length = run(f"SELECT count(*), coalesce(sum(length), 0) FROM batches WHERE {where}", id).fetchone()
        run(f"DELETE FROM batches WHERE {where}", id)
        self.batches -= batches
        self.bytes -= length

    def _count(self) -> None:
        self.batches, self.bytes = self._database.execute("SELECT count(*), coalesce(sum(length), 0) FROM batches").fetchone()


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when something is raised."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:
            self._database.execute("ROLLBACK")
