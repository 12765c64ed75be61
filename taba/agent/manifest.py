"""What is in the spool, told apart from it: so that what goes with a damaged, cut or removed file is counted, whatever of it can be read.

1. It never says more than the spool has. What comes in is written here after it is there; what goes is written and synced here before it
   goes there. So a kill or a power cut at any moment makes it say too little, never too much.
   What the spool lost, and nobody has counted yet, is among it: the next damage may take what names that in the spool.
2. The spool names the manifest that belongs to it, and how long that was when something went last. Another one, one that was cut off,
   and one of which a record is torn is not believed: an older Agent, which knows of none, names none.
3. It is written anew at each start, and goes when the spool is empty.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from taba.agent.locks import private
from taba.batch import BatchId

SPARE_RECORDS = 65_536  # 2.5 MiB: more than four for each batch that is there, and these, and it is written anew
ID_BYTES = 16
_MAGIC = b"TabaList"
_RECORD = struct.Struct("<16sIQq")  # stream, bucket, number, events, or one of the two below
_THROUGH, _ALONE = -1, -2  # it went, and all before it of its lane; it went
_CRC = struct.Struct("<I")
_BYTES = _RECORD.size + _CRC.size
_READ_RECORDS = 4096  # at a time

# what is left of the records; a file of SQLite's own, so that a large one takes no memory
_TABLE = """
ATTACH '' AS listed;
PRAGMA listed.journal_mode=MEMORY;
CREATE TABLE listed.batches (
  stream BLOB, bucket INTEGER, number INTEGER, events INTEGER, PRIMARY KEY (stream, bucket, number)) WITHOUT ROWID;
"""


class Manifest:
    """The manifest in the file `path`. Before `read` or `begin` it knows of none, and writes none."""

    def __init__(self, path: str):
        self.path = path
        self.id = b""  # of the one that is written; b"": of none
        self.gone_at = 0  # its bytes when something went last
        self.last = b""  # the id from which the next one follows
        self._fd = -1
        self._size = 0

    def missing(self, database: sqlite3.Connection, named: tuple[bytes, bytes] | None) -> dict[BatchId, int]:
        """The events of batches that it names, and that the tables `batches` and `lost` of `database` do not.

        `named`: the id and length that the spool keeps; None where it keeps none at all, since it was made anew. Nothing is missing by a
        manifest that is not believed. Raises sqlite3.Error.
        """
        if not self._is_named(named):
            return {}
        database.executescript(_TABLE)
        try:
            run = database.execute
            run("BEGIN")  # else each record is a transaction of its own
            try:
                for stream, bucket, number, events in self._records():
                    if events >= 0:
                        run("INSERT OR REPLACE INTO listed.batches VALUES (?, ?, ?, ?)", (stream, bucket, number, events))
                    else:
                        which = "number <= ?" if events == _THROUGH else "number = ?"
                        run(f"DELETE FROM listed.batches WHERE stream = ? AND bucket = ? AND {which}", (stream, bucket, number))
            except (OSError, ValueError, OverflowError):
                return {}  # a torn one is not believed
            finally:
                run("COMMIT")
            left = run(
                "SELECT stream, bucket, number, events FROM listed.batches AS said WHERE NOT EXISTS (SELECT 1 FROM main.batches AS row"
                " WHERE row.stream = said.stream AND row.bucket = said.bucket AND row.number = said.number)"
                " AND NOT EXISTS (SELECT 1 FROM main.lost AS row"
                " WHERE row.stream = said.stream AND row.bucket = said.bucket AND row.number = said.number)"
            )
            return {BatchId(*id): events for *id, events in left}
        finally:
            database.execute("DETACH listed")

    def follow(self, named: tuple[bytes, bytes] | None) -> None:
        """The next one has another id than the one that the spool keeps, and than the one that is there."""
        if named is not None and isinstance(named[0], bytes):
            self.last = _next(self.last + named[0])

    def begin(self) -> None:
        """Be a new one, once something is written."""
        self.close()
        self.last = _next(self.last)
        self.id, self.gone_at, self._size = self.last, 0, 0

    def add(self, batches: Iterable[tuple[BatchId, int]]) -> None:
        """These batches, each with its events, are in the spool by now."""
        self._write(_packed((id, events) for id, events in batches))

    def let_go(self, ids: Iterable[BatchId], is_through: bool) -> None:
        """These batches are about to go; with `is_through` all before them of their lanes, too."""
        if self._fd >= 0:
            self._write(_packed((id, _THROUGH if is_through else _ALONE) for id in ids), is_synced=True)
            self.gone_at = self._size

    def end(self) -> None:
        """Nothing is in the spool any more, or what is there can be told no longer: be none, until one begins."""
        self.close()
        self.id, self.gone_at, self._size = b"", 0, 0
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return
        except OSError:
            return  # the spool names none: what stays there is not believed

    def named(self) -> tuple[bytes, bytes]:
        """What the spool is to keep of it."""
        return self.id, b"%d" % self.gone_at

    def is_long(self, batches: int) -> bool:
        """Whether it is to be written anew, while so many batches are there."""
        return self._size > (4 * batches + SPARE_RECORDS) * _BYTES

    def close(self) -> None:
        """Write no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, content: bytes, is_synced: bool = False) -> None:
        """Append; where the disk takes it not, there is none any more, and less is known of the spool, never what is wrong."""
        if not self.id or not content:
            return
        try:
            if self._fd < 0:
                self._fd = private(self.path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
                head = _MAGIC + self.id
                content = head + bytes(_BYTES - _CRC.size - len(head)) + _CRC.pack(zlib.crc32(head)) + content
                self._append(content)
                os.replace(self.path + ".new", self.path)
            else:
                self._append(content)
            if is_synced:
                os.fsync(self._fd)
        except OSError:
            self.end()

    def _append(self, content: bytes) -> None:
        if os.write(self._fd, content) < len(content):
            raise OSError(28, os.strerror(28), self.path)
        self._size += len(content)

    def _is_named(self, named: tuple[bytes, bytes] | None) -> bool:
        """Whether there is one that belongs to the spool."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(_BYTES)
                size = file.seek(0, os.SEEK_END)
        except OSError:
            return False
        id = head[len(_MAGIC) :][:ID_BYTES]
        if len(head) < _BYTES or head[: len(_MAGIC)] != _MAGIC or _CRC.unpack(head[-_CRC.size :])[0] != zlib.crc32(_MAGIC + id):
            return False
        self.last = id
        if named is None:
            return True
        try:
            return named[0] == id and size >= int(named[1])
        except (TypeError, ValueError):
            return False

    def _records(self) -> Iterator[tuple[bytes, int, int, int]]:
        """All that it says, in order; a kill may leave a part of a record at the end. Raises OSError; ValueError where it is torn."""
        with open(self.path, "rb") as file:
            file.seek(_BYTES)
            while content := file.read(_READ_RECORDS * _BYTES):
                for start in range(0, len(content) // _BYTES * _BYTES, _BYTES):
                    record = content[start : start + _RECORD.size]
                    if zlib.crc32(record) != _CRC.unpack_from(content, start + _RECORD.size)[0]:
                        raise ValueError("a record is torn")
                    yield _RECORD.unpack(record)


def _next(id: bytes) -> bytes:
    return blake2b(id, digest_size=ID_BYTES).digest()


def _packed(records: Iterable[tuple[BatchId, int]]) -> bytes:
    packed = (_RECORD.pack(id.stream, id.bucket, id.number, events) for id, events in records)
    return b"".join(record + _CRC.pack(zlib.crc32(record)) for record in packed)
