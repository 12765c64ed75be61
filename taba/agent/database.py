"""A transaction of SQLite's that is over when its block is, however that ends: what is left open would refuse every later one."""

from __future__ import annotations

import sqlite3


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
