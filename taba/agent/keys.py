"""Which posts with an Idempotency-Key came to this Agent before: each counts once, after a restart too. SQLite, one file an Agent.

The bound is shared fairly: beyond it, of whoever posts the one that has most keys, and of its Clients the one that has most, loses its
oldest. So a poster that floods forgets its own alone, under however many Clients, and a Client of one that does not flood its own.

A row has its checksum: a key of which that is not right is not known, and Servers, who know it as well, say what becomes of its post.

It is remembered that a post came after its events are in the outbox, which remembers it meanwhile. What a power cut takes from this file
it takes from the outbox too, so nothing here is synced.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress

from taba.agent.database import DAMAGE, Connection, Transaction, is_trouble, one_line, open_full, open_in_any_case
from taba.agent.grants import WHOSE_BYTES, digest_of
from taba.agent.locks import private
from taba.batch import KeyPart
from taba.plural import many

MAX_KEYS = 100_000  # 12 MiB; of more, the oldest of whoever has most are forgotten, and count anew
MAX_UNWRITTEN = 10_000  # that the disk did not take, some 2 MiB; of more, the oldest are forgotten
RETRY_SECONDS = 5.0  # between two tries to write what the disk did not take: each writes all of that, a tenth of a second
_SCHEMA = "CREATE TABLE IF NOT EXISTS keys (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, digest BLOB NOT NULL)"
_CLIENTS = (
    # of what came before, or from the outbox, nobody knows whose it is; there are rows that have a Client's digest alone
    "ALTER TABLE keys ADD COLUMN client BLOB NOT NULL DEFAULT x''"
)
_BY_CLIENT = "CREATE INDEX IF NOT EXISTS keys_of_clients ON keys (client, id)"


_CHECK_BYTES = 4  # behind a digest; in rows of a version before there is none, and they are not known


def _sealed(key: bytes, digest: bytes) -> bytes:
    """A digest as its row has it."""
    return digest + zlib.crc32(digest, zlib.crc32(key)).to_bytes(_CHECK_BYTES, "little")


class Shares:
    """How many keys each has; who has most, of several the one that came to have so many first."""

    def __init__(self) -> None:
        self._of: dict[bytes, int] = {}
        self._with: dict[int, dict[bytes, None]] = {}  # so many → who has them
        self._most = 0

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, whose: bytes, keys: int = 1) -> None:
        """It has so many more."""
        has = self._of.pop(whose, 0)
        if has:
            self._with[has].pop(whose)
            if not self._with[has]:
                del self._with[has]
        has += keys
        if has > 0:
            self._of[whose] = has
            self._with.setdefault(has, {})[whose] = None
        self._most = max(self._most, has)

    def take(self) -> bytes:
        """Who has most, and has one less from now on."""
        while self._most not in self._with:
            self._most -= 1
        whose = next(iter(self._with[self._most]))
        self.add(whose, -1)
        return whose


class SharesOfPosters:
    """How many keys each Client has of each poster: by both digests, that of the poster first."""

    def __init__(self) -> None:
        self._posters = Shares()
        self._of: dict[bytes, Shares] = {}  # poster → its Clients'

    def add(self, whose: bytes, keys: int = 1) -> None:
        """It has so many more."""
        poster = whose[:-WHOSE_BYTES]
        self._posters.add(poster, keys)
        shares = self._of.setdefault(poster, Shares())
        shares.add(whose, keys)
        if not shares:
            del self._of[poster]

    def take(self) -> bytes:
        """Of the poster that has most, the Client that has most, and has one less from now on."""
        poster = self._posters.take()
        whose = self._of[poster].take()
        if not self._of[poster]:
            del self._of[poster]
        return whose


class Keys:
    """The keys in the file `path`, `most` of them at the most. Raises sqlite3.Error where no file can be made there, but not on a full
    disk: what is known is read, and `tick` makes up for the rest.

    A file that is none of its kind is made anew, and `problem` says so: what was posted before may count again.
    """

    def __init__(self, path: str, most: int = MAX_KEYS):
        self.path, self._most = path, most
        self.problem: str | None = None
        self.forgotten = 0  # keys that the disk did not take, and for which memory had no room
        self._unwritten: dict[bytes, tuple[KeyPart, bytes]] = {}  # key → it, and whose it is
        self._failure: str | None = None  # of the last try
        self._not_before = 0.0  # the next one
        self.mended: str | None = None  # what was found damaged while it was open; its owner takes it away
        self._stands_in = False  # for the file, in memory
        open_in_any_case(self._open, self._open_full, self._open_anew)

    def _open_anew(self, error: Exception) -> None:
        if is_trouble(error):
            raise error
        self.problem = self._make_anew(error)

    def _make_anew(self, error: Exception) -> str:
        """In the place of a damaged file. Returns a sentence; raises sqlite3.Error, OSError."""
        with suppress(AttributeError):  # not even that was opened
            self._database.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)
        self._open()
        return f"{self.path} was unreadable ({error}): events that are posted again under a key of before count again"

    def _mend(self, error: Exception) -> None:
        """Make it anew while it is open. Raises what it was given where the file is not at fault; sqlite3.Error."""
        if is_trouble(error):
            raise error
        try:
            self.mended = self._make_anew(error)
        except OSError as failure:
            raise sqlite3.OperationalError(f"{error}; and it cannot be made anew: {failure}") from None

    def _open(self) -> None:
        if not os.path.exists(self.path):
            os.close(private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._database: sqlite3.Connection = sqlite3.connect(self.path, isolation_level=None, timeout=1.0, factory=Connection)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._check(self._database)
            self._begin()
        except BaseException:
            self._database.close()
            raise

    def _open_full(self, error: Exception) -> None:
        """Open the file without a byte written; where no keys are in it, memory stands in for it. Raises sqlite3.Error."""
        self._failure = one_line(error)
        self._database, self._stands_in = open_full(self.path, error, self._holds_any)
        if self._stands_in:
            self._begin()
        else:
            self._count()

    def _holds_any(self, database: sqlite3.Connection) -> bool:
        """Whether keys are in a file that cannot be written."""
        self._check(database)
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if names and "keys_of_clients" not in names:
            raise sqlite3.OperationalError("they are an earlier version's, to which a column is to be added")
        return bool(names)

    @staticmethod
    def _check(database: sqlite3.Connection) -> None:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(f"{found}".split()))

    def _begin(self) -> None:
        self._database.execute(_SCHEMA)
        if "client" not in {column[1] for column in self._database.execute("PRAGMA table_info(keys)")}:
            self._database.execute(_CLIENTS)
        self._database.execute(_BY_CLIENT)
        self._count()

    def _count(self) -> None:
        self._shares = SharesOfPosters()
        self.count = 0
        for client, count in self._database.execute("SELECT client, count(*) FROM keys GROUP BY client ORDER BY min(id)"):
            self._shares.add(client, count)
            self.count += count

    def digest(self, key: bytes) -> bytes | None:
        """The digest of the request that came under this key; None where none did."""
        if (unwritten := self._unwritten.get(key)) is not None:
            return unwritten[0].digest
        try:
            row = self._database.execute("SELECT digest, client FROM keys WHERE key = ?", (key,)).fetchone()
        except DAMAGE as error:
            self._mend(error)
            return None
        if row is None:
            return None
        digest = bytes(row[0][:-_CHECK_BYTES]) if isinstance(row[0], bytes) else b""
        if row[0] == _sealed(key, digest):
            return digest
        self._let_go(key, row[1])
        return None

    def whose(self) -> Iterator[tuple[bytes, bytes]]:
        """Each key, and the digests of who posted it and for which Client, where that is known; the first that came first.

        Ends where the file is damaged: looked up, its keys mend it.
        """
        with suppress(*DAMAGE):
            yield from self._database.execute("SELECT key, client FROM keys ORDER BY id")

    def _let_go(self, key: bytes, client: bytes) -> None:
        """Of a damaged row, so that its post is remembered anew; where the disk does not let go of it, it is not."""
        with suppress(sqlite3.Error), Transaction(self._database):
            self._database.execute("DELETE FROM keys WHERE key = ?", (key,))
            self._shares.add(client, -1)
            self.count -= 1

    def add(self, parts: Iterable[KeyPart], now: float, client: str = "", poster: str = "") -> None:
        """Remember that these posts of `client` came from `poster`: in memory while the disk does not take it, for their events are
        published."""
        whose = digest_of(poster) + digest_of(client) if client else b""
        for part in parts:
            self._unwritten.setdefault(part.key, (part, whose))
        self.tick(now)
        while len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]
            self.forgotten += 1

    def tick(self, now: float) -> None:
        """Write what the disk has not taken yet, unless that was tried a moment ago. `now` is monotonic seconds."""
        if (not self._unwritten and self._failure is None) or (self._failure is not None and now < self._not_before):
            return
        try:
            if self._stands_in:
                self._make_ready()
            try:
                self._write(self._unwritten.values())
            except DAMAGE as error:
                self._mend(error)
                self._write(self._unwritten.values())
        except sqlite3.Error as error:
            self._failure, self._not_before = f"{error}", now + RETRY_SECONDS
        else:
            self._failure = None
            self._unwritten.clear()

    def _make_ready(self) -> None:
        """What a full disk kept from being made. Raises sqlite3.OperationalError while that is so."""
        before = self._database
        try:
            self._open()
        except (OSError, *DAMAGE) as error:
            self._database = before
            raise sqlite3.OperationalError(one_line(error)) from error
        self._stands_in = False
        before.close()

    @property
    def write_problem(self) -> str | None:
        """What the disk does not take, for people."""
        if self._failure is None:
            return None
        forgotten = f", and {self.forgotten} that came before them are not: posted again they count again" if self.forgotten else ""
        return (
            f"{self.path} cannot be written ({self._failure}): "
            f"{many(len(self._unwritten), 'key of a post is', 'keys of posts are')} known until this Agent ends"
            f"{forgotten}; make room"
        )

    def _write(self, parts: Iterable[tuple[KeyPart, bytes]]) -> None:
        run, count, taken = self._database.execute, self.count, list[bytes]()
        added: list[bytes] = []
        try:
            with Transaction(self._database):
                for part, client in parts:
                    if run(
                        "INSERT OR IGNORE INTO keys (key, digest, client) VALUES (?, ?, ?)",
                        (part.key, _sealed(part.key, part.digest), client),
                    ).rowcount:
                        self._shares.add(client)
                        added.append(client)
                for _ in range(count + len(added) - self._most):
                    taken.append(self._shares.take())
                    run("DELETE FROM keys WHERE id = (SELECT min(id) FROM keys WHERE client = ?)", (taken[-1],))
        except sqlite3.Error:
            for client in taken:
                self._shares.add(client)
            for client in added:
                self._shares.add(client, -1)
            raise
        self.count = count + len(added) - len(taken)

    def close(self) -> None:
        self._database.close()
