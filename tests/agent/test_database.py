"""A transaction that fails leaves nothing open: what comes after it goes on."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.database import Transaction
from taba.agent.keys import Keys
from taba.batch import KeyPart


def part(number: int) -> KeyPart:
    return KeyPart(b"%016d" % number, b"d" * 16, 0)


class Full(sqlite3.Connection):
    """A database whose disk takes nothing more while `is_full`, at this word of SQL."""

    is_full = ""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if self.is_full and sql.startswith(self.is_full):
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, *arguments)


class TransactionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None, factory=Full)
        self.database.execute("CREATE TABLE t (n)")

    def rows(self) -> list[int]:
        return [number for (number,) in self.database.execute("SELECT n FROM t")]

    def add(self, number: int) -> None:
        with Transaction(self.database):
            self.database.execute("INSERT INTO t VALUES (?)", (number,))

    def test_a_disk_that_is_full_at_any_word_of_it_takes_the_next_one_when_there_is_room(self) -> None:
        for word in ("INSERT", "COMMIT", "BEGIN"):
            self.database.is_full = word
            self.assertRaises(sqlite3.OperationalError, self.add, 1)
            self.database.is_full = ""
            self.assertEqual(self.rows(), [], word)
        self.add(2)
        self.assertEqual(self.rows(), [2])

    def test_what_another_raises_within_it_undoes_it(self) -> None:
        with self.assertRaises(ZeroDivisionError), Transaction(self.database):
            self.database.execute("INSERT INTO t VALUES (1)")
            _ = 1 // 0
        self.add(2)
        self.assertEqual(self.rows(), [2])


class KeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.keys = Keys(os.path.join(tempfile.mkdtemp(), "keys"))
        self.addCleanup(lambda: self.keys.close())

    def test_a_disk_that_was_full_keeps_no_later_post_from_being_remembered(self) -> None:
        (pages,) = self.keys._database.execute("PRAGMA page_count").fetchone()
        self.keys._database.execute(f"PRAGMA max_page_count={pages + 1}")  # SQLite's own full disk
        with self.assertRaises(sqlite3.OperationalError):
            self.keys.add([part(number) for number in range(10_000)])
        self.assertEqual(self.keys.count, 0)
        self.keys._database.execute("PRAGMA max_page_count=1000000")
        self.keys.add([part(1), part(2), part(1)])
        self.assertEqual((self.keys.count, self.keys.digest(part(2).key), self.keys.digest(part(3).key)), (2, b"d" * 16, None))
