"""Which posts with an Idempotency-Key came to this Agent before: each counts once, after a restart too. SQLite, one file an Agent.

It is remembered that a post came after its events are in the outbox, which remembers it meanwhile. What a power cut takes from this file
it takes from the outbox too, so nothing here is synced.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable

from taba.agent.database import Transaction
from taba.agent.locks import private
from taba.batch import KeyPart

MAX_KEYS = 100_000  # 10 MiB; of more, the oldest are forgotten, and count anew
MAX_UNWRITTEN = 10_000  # that the disk did not take, some 2 MiB; of more, the oldest are forgotten
RETRY_SECONDS = 5.0  # between two tries to write what the disk did not take: each writes all of that, a tenth of a second
_SCHEMA = "CREATE TABLE IF NOT EXISTS keys (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, digest BLOB NOT NULL)"


class Keys:
    """The keys in the file `path`, the latest `most` of them. Raises sqlite3.Error where no file can be made there.

    A file that is none of its kind is made anew, and `problem` says so: what was posted before may count again.
    """

    def __init__(self, path: str, most: int = MAX_KEYS):
        self.path, self._most = path, most
        self.problem: str | None = None
        self.forgotten = 0  # keys that the disk did not take, and for which memory had no room
        self._unwritten: dict[bytes, KeyPart] = {}
        self._failure: str | None = None  # of the last try
        self._not_before = 0.0  # the next one
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.remove(path + suffix)
            self.problem = f"{path} was unreadable ({error}): events that are posted again under a key of before count again"
            self._open()

    def _open(self) -> None:
        if not os.path.exists(self.path):
            os.close(private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._database = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(_SCHEMA)
        (self.count,) = self._database.execute("SELECT count(*) FROM keys").fetchone()

    def digest(self, key: bytes) -> bytes | None:
        """The digest of the request that came under this key; None where none did."""
        if (unwritten := self._unwritten.get(key)) is not None:
            return unwritten.digest
        row = self._database.execute("SELECT digest FROM keys WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def add(self, parts: Iterable[KeyPart], now: float) -> None:
        """Remember that these posts came. Where the disk does not take it, in memory until it does: their events are published."""
        for part in parts:
            self._unwritten.setdefault(part.key, part)
        self.tick(now)
        while len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]
            self.forgotten += 1

    def tick(self, now: float) -> None:
        """Write what the disk has not taken yet, unless that was tried a moment ago. `now` is monotonic seconds."""
        if not self._unwritten or (self._failure is not None and now < self._not_before):
            return
        try:
            self._write(self._unwritten.values())
        except sqlite3.Error as error:
            self._failure, self._not_before = f"{error}", now + RETRY_SECONDS
        else:
            self._failure = None
            self._unwritten.clear()

    @property
    def write_problem(self) -> str | None:
        """What the disk does not take, for people."""
        if self._failure is None:
            return None
        forgotten = f", and {self.forgotten} that came before them are not: posted again they count again" if self.forgotten else ""
        return (
            f"{self.path} cannot be written ({self._failure}): {len(self._unwritten)} keys of posts are known until this Agent ends"
            f"{forgotten}; make room"
        )

    def _write(self, parts: Iterable[KeyPart]) -> None:
        run, count = self._database.execute, self.count
        with Transaction(self._database):
            for part in parts:
                count += run("INSERT OR IGNORE INTO keys VALUES (NULL, ?, ?)", (part.key, part.digest)).rowcount
            if count > self._most:
                count -= run("DELETE FROM keys WHERE id IN (SELECT id FROM keys ORDER BY id LIMIT ?)", (count - self._most,)).rowcount
        self.count = count

    def close(self) -> None:
        self._database.close()
