"""A transaction of SQLite's that is over when its block is, however that ends: what is left open would refuse every later one."""

from __future__ import annotations

import errno
import os
import sqlite3

DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError)  # what a damaged file raises; the latter two of what is in the damage
_TROUBLE = ("unable to open", "is full", "is locked", "I/O error", "readonly")


def is_trouble(error: Exception) -> bool:
    """Whether the disk or the directory is at fault, and not the file: it is as good as it was."""
    return any(words in f"{error}" for words in _TROUBLE)


def is_full(error: Exception) -> bool:
    """Whether the disk has no room: SQLite says of a quota, and of its index in shared memory, that reading or writing failed."""
    if isinstance(error, sqlite3.Error):
        return any(words in f"{error}" for words in ("is full", "I/O error"))
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def open_full(path: str) -> sqlite3.Connection | None:
    """A file on a full disk, to be read, and to be written once there is room; None where it is not there or empty.

    Nobody else may have it open: the index of its log is in memory, which the file beside it, that others look at, has no room for.
    """
    if not os.path.exists(path) or not os.path.getsize(path):
        return None
    database = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    return database


class Transaction:
    """BEGIN IMMEDIATE … COMMIT; ROLLBACK when something is raised, by the commit itself too: a full disk leaves it open."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
