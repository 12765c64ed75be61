"""A transaction of SQLite's that is over when its block is, however that ends: what is left open would refuse every later one."""

from __future__ import annotations

import sqlite3

DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError)  # what a damaged file raises; the latter two of what is in the damage
_TROUBLE = ("unable to open", "is full", "is locked", "I/O error", "readonly")


def is_trouble(error: Exception) -> bool:
    """Whether the disk or the directory is at fault, and not the file: it is as good as it was."""
    return any(words in f"{error}" for words in _TROUBLE)


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
