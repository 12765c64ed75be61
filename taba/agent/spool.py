"""The spool: where an Agent keeps batches on disk when the outbox ran full, until Servers take them. SQLite, one file an Agent.

1. Batches come in as they are, in one transaction; after it returns they survive a power cut (`synchronous=FULL`).
2. Each row has its checksum, of all that it says: a row that does not match is counted, and harms no other. Of what was lost that is
   the row's id; where it does not match the file is damaged, and what is beside it (4) tells what the row named.
3. Of a damaged file all that can be read goes into a new one, at the start and while it is open. What could not be read is named in the new
   file until its owner has it counted: `lost` and `salvage` are there before the damaged one goes.
4. What is in the file is also told beside it (`taba.agent.manifest`): of a file that is cut, replaced or gone, what was in it is counted.
5. The sum of the batches' bytes never passes the bound: what does not fit raises SpoolFull before anything is written.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taba.agent.ages import Moment
from taba.agent.database import DAMAGE, Connection, Transaction, is_full, one_line, open_full, open_in_any_case
from taba.agent.locks import private
from taba.agent.manifest import Manifest
from taba.agent.outbox import EncodedBatch, OtherVersion, StoredBatch
from taba.agent.salvage import mend_first_page, move, readable_rows
from taba.agent.spooled import (
    COLUMNS,
    DOUBTED,
    LISTED,
    NAMED,
    SCHEMA,
    TABLE,
    check,
    checksum,
    is_damage,
    is_lost_row,
    is_no_text,
    is_trouble,
    is_whole,
    lost_row,
    none_of,
    write_nothing,
)
from taba.batch import BatchId
from taba.bounds import MAX_BUCKETS, MiB
from taba.damage import aside_name
from taba.errors import TabaError
from taba.plural import many

DEFAULT_SPOOL_BYTES = 1024 * MiB
MIN_SPOOL_BYTES = 1 * MiB
ROW_BYTES = 128  # what a row costs beside its content, with its entry in the index
MAX_ASIDE_ROWS = 100  # refused and corrupt batches that are kept to be looked at
MAX_ASIDE_BYTES = 16 * MiB


class SpoolFull(TabaError):
    """The batches do not fit under the spool's bound, or, with `is_disk`, the disk took them not; `is_damaged`: by the file's fault."""

    def __init__(self, message: str, is_disk: bool = False, is_damaged: bool = False):
        super().__init__(message)
        self.is_disk, self.is_damaged = is_disk, is_damaged


class Spool:
    """The spool in the file `path`, of at most `spool_bytes`.

    Whatever the bytes of the file are, it opens: of a damaged one all that can be read is brought over into a new one, the rest is
    named in `lost`, the damaged one is kept beside it, and `problem` says so. On a full disk it opens, too: `unready` says why nothing
    can be written, what is there is read, and `try_to_write` makes up for it. Raises OtherVersion for one of another format, OSError
    or sqlite3.Error when the directory takes no file at all, or what is in the file cannot be told.
    """

    def __init__(self, path: str, spool_bytes: int = DEFAULT_SPOOL_BYTES):
        self.path = path
        self.bound = spool_bytes
        self.problem: str | None = None
        self._lost_rows: dict[BatchId, int] = {}
        self.lost: dict[BatchId, int] = {}  # events of batches that were here and can be read no more, …
        self.salvage = ""  # … as which salvage found; "" once they are counted
        self.is_doubted = False  # a table that was here may be gone, and none was published since
        self._manifest = Manifest(path + ".list")
        if os.path.exists(path + ".new") and not os.path.exists(path):
            os.replace(path + ".new", path)  # a kill came at the very end of a salvage
        self.unready: str | None = None
        self._stands_in = False  # for the file, in memory
        self._database: sqlite3.Connection
        try:
            self._take_up(path)
        except BaseException:
            self.close()
            raise

    def _take_up(self, path: str) -> None:
        """Open what is there, whatever its bytes are, or make it."""
        open_in_any_case(lambda: self._open(path), self._open_full, self._open_damaged)
        if self.unready is None:
            try:
                self._compare()
            except sqlite3.Error as error:
                if not is_full(error):
                    raise
                self.unready = f"{error}"
        self._count()

    def _open(self, path: str) -> None:
        """Open the file, and make it if need be. Raises sqlite3.DatabaseError where it is no whole spool of this version."""
        if not os.path.exists(path):
            os.close(private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._database = sqlite3.connect(path, isolation_level=None, timeout=1.0, factory=Connection)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._check(self._database, path)
        except BaseException:
            self._database.close()
            raise

    def _open_damaged(self, error: Exception) -> None:
        if is_trouble(error):
            raise error
        self._salvage(f"{error}")

    def _open_full(self, error: Exception) -> None:
        """Open the file without a byte written; where nothing is in it, memory stands in for it. Raises what `_open` does."""
        self.unready = one_line(error)
        self._database, self._stands_in = open_full(self.path, error, lambda found: self._check(found, self.path, is_full=True))
        if self._stands_in:
            self._database.executescript(SCHEMA)

    def _make_ready(self) -> None:
        """What a full disk kept from being done when this was opened. Raises sqlite3.OperationalError while that is so."""
        before = self._database
        try:
            if self._stands_in:
                self._open(self.path)
                self._stands_in = False
                before.close()
            else:
                write_nothing(self._database)
            self.unready = None
            self._compare()
        except (OSError, sqlite3.Error, UnicodeDecodeError, OverflowError, OtherVersion) as error:
            if self._stands_in:
                self._database = before
            self.unready = one_line(error)
            raise sqlite3.OperationalError(self.unready) from error
        self._count()

    def _check(self, database: sqlite3.Connection, path: str, is_full: bool = False) -> bool:
        """Whether there is something in the file; with `is_full` nothing is written, and there may be nothing in it."""
        is_there = check(database, path, is_full)
        if is_there:
            self._read_lost(database)
        return is_there

    def _read_lost(self, database: sqlite3.Connection) -> None:
        found = database.execute("SELECT salvage, stream, bucket, number, events, id FROM lost ORDER BY 2, 3, 4").fetchall()
        if not all(is_lost_row(row[5], BatchId(*row[1:4]), row[4]) for row in found):
            raise sqlite3.DatabaseError("a row of what it lost is not what was written")
        self.lost = {BatchId(*row[1:4]): row[4] for row in found}
        self._lost_rows = {BatchId(*row[1:4]): row[5] for row in found}  # they have no other index, and may be very many
        self.salvage = found[0][0] if found else ""
        self.is_doubted = database.execute("SELECT 1 FROM journal WHERE place = ?", (DOUBTED,)).fetchone() is not None

    def _salvage(self, reason: str) -> None:
        """Bring all rows that can be read of a damaged file over into a new one, and keep the damaged one."""
        fresh = self.path + ".new"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):  # of a salvage that was cut off
                os.unlink(fresh + suffix)
        self._open(fresh)
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        aside = aside_name(self.path)
        known: dict[BatchId, int] = {}
        rows: dict[BatchId, int] = {}  # of these, which row the index says that they are
        whole: set[int] = set()
        try:
            mend_first_page(self.path, fresh)
            damaged = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
            try:
                for table in ("batches INDEXED BY identity", "lost"):  # the index has what the table had, as far as that can be read
                    with contextlib.suppress(sqlite3.DatabaseError):
                        asked = f"SELECT id, stream, bucket, number, events FROM {table} WHERE NOT ({none_of(NAMED)})"
                        for place, *id, events in damaged.execute(asked):
                            if table != "lost":
                                rows[BatchId(*id)] = place
                            elif not is_lost_row(place, BatchId(*id), events):
                                continue
                            known[BatchId(*id)] = events
                with self._transaction():
                    for row in readable_rows(damaged, COLUMNS, "batches"):
                        if is_whole(row[1:]):
                            whole.add(row[0])
                            self._bring(f"INSERT OR IGNORE INTO batches VALUES (NULL{', ?' * (len(row) - 1)})", row[1:])
                    for row in readable_rows(damaged, "stream, bucket, number, reason, content", "aside"):
                        self._bring("INSERT INTO aside VALUES (NULL, ?, ?, ?, ?, ?)", row[1:])
                    with contextlib.suppress(sqlite3.DatabaseError):  # a table that the outbox has as well, where it had room
                        places = f"({TABLE}, {LISTED})"
                        for row in damaged.execute(f"SELECT place, outbox, content FROM journal WHERE place IN {places}"):
                            self._database.execute("INSERT OR REPLACE INTO journal VALUES (?, ?, ?)", row)
            finally:
                damaged.close()
        except DAMAGE as error:
            if is_trouble(error):
                raise  # else what was found until then is all
        brought = {BatchId(*row) for row in self._database.execute("SELECT stream, bucket, number FROM batches")}
        # a row that is whole is what it says of itself: where the index says something else of it, that is no batch
        lost = {id: events for id, events in known.items() if id not in brought and rows.get(id) not in whole}
        with self._transaction():
            self._name_lost(aside, lost)
        self._database.close()
        move(self.path, aside)
        move(fresh, self.path)
        self.problem = (
            f"the spool {self.path} was damaged ({reason}): {many(len(brought), 'batch was', 'batches were')} brought over, "
            f"{len(lost)} with {many(sum(lost.values()), 'event')} could not be read; it is kept as {aside}; look at its disk"
        )
        self._open(self.path)

    def _bring(self, command: str, row: Sequence[Any]) -> None:
        """Into the new file. Raises OSError where that does not take it: the damaged one has it still."""
        try:
            self._database.execute(command, row)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}.new cannot be written: {error}") from error

    def heal(self, reason: str) -> None:
        """Of a file that turned out to be damaged, bring over what can be read, as at the start; `lost` names the rest.

        Takes as long as writing all of it anew. Raises OSError or sqlite3.Error where the disk does not take it: then all is as it was.
        """
        if self.unready is not None:
            raise sqlite3.OperationalError(self.unready)
        self._database.close()
        try:
            self._salvage(reason)
        except (OSError, sqlite3.Error):
            self._database.close()
            try:
                self._open(self.path)  # the new one, where that was whole and only its opening failed
            except (OSError, sqlite3.Error, UnicodeDecodeError, OverflowError, TabaError):
                self._database = sqlite3.connect(self.path, isolation_level=None, timeout=1.0, factory=Connection)
            else:
                self._count()
            raise
        try:
            self._compare()
        except sqlite3.Error as error:
            self.unready = one_line(error)  # with what the manifest has: it is tried again
            raise
        finally:
            self._count()

    def _compare(self) -> None:
        """What the manifest names and the file has not is lost, too; the manifest begins anew."""
        run = self._database.execute
        row = run("SELECT outbox, content FROM journal WHERE place = ?", (LISTED,)).fetchone()
        missing = self._manifest.missing(self._database, row)
        salvage = f"{aside_name(self.path)} {self._manifest.last.hex()}"  # of each manifest once
        self._manifest.follow(row)
        if missing or run("SELECT 1 FROM batches UNION ALL SELECT 1 FROM lost LIMIT 1").fetchone():
            self._manifest.begin()
            with self._transaction():
                if missing:
                    run("UPDATE lost SET salvage = ?", (salvage,))
                    self._name_lost(salvage, missing)
                    run("INSERT OR REPLACE INTO journal VALUES (?, x'', x'')", (DOUBTED,))
                self._name_manifest()
            self._list_all()  # in the place of the one before: that is compared again until what it had is among the lost
        else:
            self._manifest.end()
        if missing:
            found = (
                f"{many(len(missing), 'batch')} with {many(sum(missing.values()), 'event')} went with the spool {self.path}: it "
                "was cut off, removed or replaced; look at its disk, and at who removes files there"
            )
            self.problem = found if self.problem is None else f"{self.problem}; and {found}"
            self._read_lost(self._database)

    def _name_lost(self, salvage: str, lost: Mapping[BatchId, int]) -> None:
        """In a transaction: these are lost, too."""
        rows = ((lost_row(id, events), salvage, *id, events) for id, events in lost.items())
        self._database.executemany("INSERT INTO lost VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _name_manifest(self) -> None:
        """In a transaction: which manifest is the file's."""
        self._database.execute("INSERT OR REPLACE INTO journal VALUES (?, ?, ?)", (LISTED, *self._manifest.named()))

    def _list_all(self) -> None:
        """Have all that is here in a manifest that has begun, and what is lost: damage to the file may take what names that, too."""
        named = "SELECT stream, bucket, number, events"
        found = self._database.execute(f"{named} FROM lost UNION ALL {named} FROM batches")
        while rows := found.fetchmany(10_000):
            self._manifest.add((BatchId(*id), events) for *id, events in rows)

    def try_to_write(self) -> None:
        """Change nothing, but for what a full disk kept from being done at first: `lost` may name more then. Raises sqlite3.Error where
        the disk, or the file, takes nothing."""
        if self.unready is not None:
            self._make_ready()
        else:
            write_nothing(self._database)

    def counted(self) -> None:
        """What is `lost` is counted where a kill does not reach it."""
        self._manifest.let_go(self.lost, False)
        with self._transaction():
            self._name_manifest()
            self._database.execute("DELETE FROM lost")
        self.salvage = ""

    def trust(self) -> None:
        """A table was published by who knew that there may have been a later one. Raises sqlite3.Error."""
        with self._transaction():
            self._database.execute("DELETE FROM journal WHERE place = ?", (DOUBTED,))
        self.is_doubted = False

    def found(self, ids: Iterable[BatchId]) -> None:
        """These are not lost after all, though not here: a Server has applied them, or the outbox has them. Raises sqlite3.Error."""
        found = [id for id in ids if id in self.lost]
        self._manifest.let_go(found, False)
        with self._transaction():
            self._name_manifest()
            self._delete_lost(found)
        self._lost_no_more(found)

    def _delete_lost(self, ids: Iterable[BatchId]) -> None:
        """In a transaction: these are among the lost, and are it no more."""
        self._database.executemany("DELETE FROM lost WHERE id = ?", ((self._lost_rows[id],) for id in ids))

    def _lost_no_more(self, ids: Iterable[BatchId]) -> None:
        for id in ids:
            self.lost.pop(id, None)
        if not self.lost:
            self.salvage = ""

    def restore(self, batches: Sequence[EncodedBatch]) -> None:
        """Keep batches that are among the lost, whose bytes somebody has: they are lost no more. Raises SpoolFull or sqlite3.Error."""
        self._begin_manifest()
        found = [batch.id for batch in batches if batch.id in self.lost]
        with self._transaction():
            self._delete_lost(found)
            self._insert(batches)
            self._name_manifest()
        self._manifest.add((batch.id, batch.events) for batch in batches)
        self._lost_no_more(found)
        self._count()

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
        if self.unready is not None:
            raise SpoolFull(f"the disk: {self.unready}", True)
        needed = sum(len(batch.content) + ROW_BYTES for batch in batches)
        if needed > self.free:
            raise SpoolFull(f"{needed} bytes; {max(self.free, 0)} of {self.bound} are free")
        self._begin_manifest()
        found = [batch.id for batch in batches if batch.id in self.lost]  # they are here again
        try:
            with self._transaction():
                before = self._database.total_changes
                self._insert(batches)
                added = self._database.total_changes - before
                self._delete_lost(found)
                self._name_manifest()
                if journal is not None:
                    self._database.execute("INSERT OR REPLACE INTO journal VALUES (0, ?, ?)", journal)
        except sqlite3.Error as error:
            raise SpoolFull(f"the disk: {error}", True, is_damage(error)) from None
        self._lost_no_more(found)
        self._manifest.add((batch.id, batch.events) for batch in batches)
        if added == len(batches):
            self.batches += added
            self.bytes += needed - added * ROW_BYTES
            return
        try:
            self._count()  # some were here already: a kill between this transaction and the outbox's release
        except sqlite3.Error as error:  # all are there, and are found to be when it is tried again
            raise SpoolFull(f"the disk: {error}", True, is_damage(error)) from None

    def _begin_manifest(self) -> None:
        """Where nothing is here, what comes is told from now on; else that is so since the start, or the disk took it not."""
        if not self.batches and not self._manifest.id:
            self._manifest.begin()

    def _insert(self, batches: Sequence[EncodedBatch]) -> None:
        rows = (
            (*id, len(content), *created.fields(), events, checksum(id, created.fields(), events, key, content) ^ is_torn, key, content)
            for id, created, events, content, key, crc in batches
            # what comes from an outbox that something wrote over is as torn here
            for is_torn in (crc is not None and zlib.crc32(content) != crc,)
        )
        self._database.executemany("INSERT OR IGNORE INTO batches VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def journal(self, outbox: bytes | None) -> bytes | None:
        """The table that was kept last, if it was for the outbox of this id; with None, for whichever."""
        row = self._database.execute("SELECT content FROM journal WHERE place = 0 AND outbox = ifnull(?, outbox)", (outbox,)).fetchone()
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
        if row is not None and not (isinstance(row[0], bytes) and isinstance(row[1], int) and 0 <= row[1] < MAX_BUCKETS):
            raise sqlite3.DatabaseError("a row of it is none")
        return None if row is None else (row[0], row[1])

    def posted(self) -> list[bytes]:
        """The KeyParts of posted events that are here."""
        return [key for (key,) in self._database.execute("SELECT DISTINCT key FROM batches WHERE length(key)")]

    def rows(self, stream: bytes, bucket: int, after: int, limit: int) -> list[StoredBatch]:
        """The first `limit` batches of this lane with numbers beyond `after`, in order. Raises sqlite3.Error where they cannot be read."""
        found = self._database.execute(
            "SELECT number, created, boot, age, events, length, crc, id, key FROM batches"
            " WHERE stream = ? AND bucket = ? AND number > ? ORDER BY number LIMIT ?",
            (stream, bucket, after, limit),
        )
        try:  # a question that is not asked to its end keeps the file as it was then
            return [
                StoredBatch(BatchId(stream, bucket, number), Moment.of_fields(*created), events, length, crc, row, key=key)
                for number, *created, events, length, crc, row, key in found
            ]
        except sqlite3.OperationalError as error:
            if not is_no_text(error):
                raise
            raise sqlite3.DatabaseError("a row of it is none") from None
        except (TypeError, ValueError):
            raise sqlite3.DatabaseError("a row of it is none") from None
        finally:
            found.close()

    def read(self, id: BatchId) -> bytes | None:
        """The bytes of a batch; None where they are gone or do not match their checksum. Raises sqlite3.Error where they cannot be read."""
        try:
            row = self._database.execute(f"SELECT {COLUMNS} FROM batches WHERE stream = ? AND bucket = ? AND number = ?", id).fetchone()
        except sqlite3.OperationalError as error:
            if not is_no_text(error):
                raise
            return None
        return row[-1] if row is not None and is_whole(row) else None

    def torn(self, id: BatchId) -> bytes | None:
        """What is in the place of a batch's bytes, whatever it is, to be looked at; None where there is nothing."""
        row = self._database.execute(
            "SELECT CAST(content AS BLOB) FROM batches WHERE stream = ? AND bucket = ? AND number = ?", id
        ).fetchone()
        return None if row is None else row[0]

    def forget(self, last: Iterable[BatchId]) -> None:
        """Remove each of these batches, and all with lower numbers of its stream and bucket, in one transaction."""
        self._remove("stream = ? AND bucket = ? AND number <= ?", last)

    def discard(self, ids: Iterable[BatchId]) -> None:
        """Remove these batches, as far as they are here, in one transaction: they were counted elsewhere."""
        self._remove("stream = ? AND bucket = ? AND number = ?", ids)

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
        if hasattr(self, "_database"):  # it came as far as that
            self._database.close()
        self._manifest.close()

    def _transaction(self) -> Transaction:
        if self.unready is not None:
            raise sqlite3.OperationalError(self.unready)
        return Transaction(self._database)

    def _remove(self, where: str, ids: Iterable[BatchId]) -> None:
        """Remove these in one transaction; what is left is counted once it is over: a full disk undoes all of it."""
        run, batches, length, ids = self._database.execute, 0, 0, list(ids)
        if "<=" in where and self.lost:
            last = {id[:2]: id.number for id in ids}
            lost = [id for id in self.lost if id.number <= last.get(id[:2], 0)]
        else:
            lost = [id for id in ids if id in self.lost]
        self._manifest.let_go(ids, "<=" in where)
        with self._transaction():
            self._name_manifest()
            for id in ids:
                found = run(f"SELECT count(*), coalesce(sum(length), 0) FROM batches WHERE {where}", id).fetchone()
                run(f"DELETE FROM batches WHERE {where}", id)
                batches, length = batches + found[0], length + found[1]
            self._delete_lost(lost)
        self._lost_no_more(lost)
        self.batches -= batches
        self.bytes -= length
        if not (self.batches or self.lost):
            self._manifest.end()
        elif self._manifest.is_long(self.batches + len(self.lost)):
            self._manifest.begin()
            with self._transaction():
                self._name_manifest()
            self._list_all()

    def _count(self) -> None:
        self.batches, self.bytes = self._database.execute("SELECT count(*), coalesce(sum(length), 0) FROM batches").fetchone()
