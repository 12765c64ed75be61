"""A transaction that fails leaves nothing open: what comes after it goes on."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any
from unittest import mock

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import keys as module
from taba.agent.database import Transaction
from taba.agent.grants import WHOSE_BYTES
from taba.agent.keys import MAX_KEYS, RETRY_SECONDS, Keys
from taba.batch import KeyPart
from taba.plural import many


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


def b2(*texts: str) -> bytes:
    return b"".join(blake2b(text.encode(), digest_size=WHOSE_BYTES).digest() for text in texts)


class KeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.keys = Keys(os.path.join(tempfile.mkdtemp(), "keys"))
        self.addCleanup(lambda: self.keys.close())

    def fill(self, pages: int) -> None:
        """Let the file have so many pages more: SQLite's own full disk."""
        (used,) = self.keys._database.execute("PRAGMA page_count").fetchone()
        self.keys._database.execute(f"PRAGMA max_page_count={used + pages}")

    def test_a_disk_that_was_full_keeps_no_later_post_from_being_remembered_and_forgets_none(self) -> None:
        self.fill(1)
        self.keys.add([part(number) for number in range(10_000)], 0.0)
        self.assertIn("10000 keys of posts are known until this Agent ends", str(self.keys.write_problem))
        self.assertEqual((self.keys.count, self.keys.digest(part(9_999).key)), (0, b"d" * 16))
        self.fill(1_000_000)
        self.keys.add([part(1), part(10_001), part(1)], RETRY_SECONDS)
        self.assertEqual((self.keys.count, self.keys.write_problem), (10_001, None))
        self.keys.close()
        self.keys = Keys(self.keys.path)
        found = [self.keys.digest(part(number).key) for number in (2, 10_001, 10_002)]
        self.assertEqual(found, [b"d" * 16, b"d" * 16, None])

    def flips(self, places: range, use: Callable[[Keys], None]) -> Counter[bool]:
        """Of a file in which a byte is wrong, a place after the other: what is used bears it. How often something is said of it."""
        path = self.keys.path
        self.keys.add([part(number) for number in range(300)], 0.0, "web/1")
        self.keys.close()
        with open(path, "rb") as file:
            whole = file.read()
        said: Counter[bool] = Counter()
        for place in places:
            with open(path, "wb") as file:
                file.write(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            keys = Keys(path)
            use(keys)
            self.assertEqual(keys.digest(part(5_000).key), b"d" * 16, place)
            said[bool(keys.problem or keys.mended)] += 1
            keys.close()
        return said

    def test_a_byte_of_the_file_that_is_wrong_keeps_no_agent_from_starting_and_no_post_from_being_remembered(self) -> None:
        def use(keys: Keys) -> None:
            keys.add([part(5_000)], 0.0)

        found = self.flips(range(16, 3600, 130), use)  # the header, and what the tables are
        found += self.flips(range(3600, 4096, 12), use)
        self.assertGreater(min(found.values()), 10, found)

    def test_no_byte_that_is_wrong_makes_another_request_of_a_known_one(self) -> None:
        path, some = self.keys.path, range(0, 300, 7)
        self.keys.add([part(number) for number in range(300)], 0.0, "web/1")
        self.keys.close()
        with open(path, "rb") as file:
            whole = file.read()
        rows = [whole.index(part(number).key + b"d" * 16) for number in some]
        places = [row + 11 * place % 36 for place, row in enumerate(rows)] + list(range(4096, len(whole), 1009))
        forgotten = 0
        for place in places:
            with open(path, "wb") as file:
                file.write(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
            keys = Keys(path)
            found = {number: keys.digest(part(number).key) for number in some}
            self.assertLessEqual(set(found.values()), {b"d" * 16, None}, place)
            lost = [number for number, digest in found.items() if digest is None]
            if len(lost) == 1:  # that row alone: it is remembered anew, and counted as before
                forgotten += 1
                keys.add([part(lost[0])], 100.0, "web/1")
                self.assertEqual((keys.digest(part(lost[0]).key), keys.write_problem), (b"d" * 16, None), place)
            keys.close()
        self.assertGreater(forgotten, len(rows) // 2)

    def test_a_file_that_is_damaged_while_it_is_open_is_made_anew(self) -> None:
        self.keys.add([part(number) for number in range(2000)], 0.0)
        for use in (lambda: self.keys.digest(part(1).key), lambda: self.keys.add([part(9_000)], 0.0)):
            self.keys._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with open(self.keys.path, "r+b") as file:
                file.seek(4096)
                file.write(os.urandom(os.path.getsize(self.keys.path) - 4096))
            self.keys._database.execute("PRAGMA shrink_memory")
            use()
            self.assertIn("was unreadable", str(self.keys.mended))
            self.keys.add([part(number) for number in range(3000, 5000)], 100.0)
            self.assertEqual(self.keys.digest(part(4_000).key), b"d" * 16)

    def test_as_many_are_remembered_as_may_be_and_of_one_more_the_oldest_is_not_after_a_restart_too(self) -> None:
        self.assertEqual(self.keys._most, MAX_KEYS)
        self.keys.close()
        self.keys = Keys(self.keys.path, most=3)

        def known() -> list[int]:
            return [number for number in range(6) if self.keys.digest(part(number).key) is not None]

        self.keys.add([part(0), part(1), part(2), part(1)], 0.0)
        self.assertEqual((known(), self.keys.count), ([0, 1, 2], 3))
        self.keys.add([part(3)], 0.0)
        self.assertEqual((known(), self.keys.count), ([1, 2, 3], 3))
        self.keys.close()
        self.keys = Keys(self.keys.path, most=3)
        self.keys.add([part(2), part(4), part(5)], 0.0)
        self.assertEqual((known(), self.keys.count), ([3, 4, 5], 3))

    def test_a_client_that_floods_pushes_out_its_own_and_nobody_elses_after_a_restart_too(self) -> None:
        self.keys.close()
        self.keys = Keys(self.keys.path, most=4)

        def known(count: int) -> list[int]:
            return [number for number in range(count) if self.keys.digest(part(number).key) is not None]

        self.keys.add([part(0)], 0.0, "good")
        for number in range(1, 6):
            self.keys.add([part(number)], 0.0, "flood")
        self.assertEqual(known(6), [0, 3, 4, 5])
        self.keys.close()
        self.keys = Keys(self.keys.path, most=4)
        self.keys.add([part(6)], 0.0, "good")  # has two now, and the flood two
        self.keys.add([part(number) for number in range(7, 10)], 0.0, "flood")
        self.assertEqual((known(10), self.keys.count), ([0, 6, 8, 9], 4))
        self.keys.add([part(10)], 0.0, "another")  # of two that have as many: who has had so for longer
        self.assertEqual(known(11), [6, 8, 9, 10])

    def flood(self, clients: int, most: int) -> None:
        """A poster with so many Client ids, one after the other, beside one with three and another with one."""
        self.keys.close()
        self.keys = Keys(self.keys.path, most=most)
        good = [part(number) for number in range(4)]
        for number, client in enumerate(("web/1", "web/1", "web/2")):
            self.keys.add([good[number]], 0.0, client, "token good")
        self.keys.add([good[3]], 0.0, "web/1", "token other")
        for number in range(4, clients + 4):
            if number == clients // 2:
                self.keys.close()
                self.keys = Keys(self.keys.path, most=most)
            self.keys.add([part(number)], 0.0, f"flood/{number}", "token stranger")
        self.assertEqual(([self.keys.digest(key.key) for key in good], self.keys.count), ([b"d" * 16] * 4, most))
        kept = [self.keys.digest(part(clients + 4 - back).key) is not None for back in (1, most - 4, most - 3)]
        self.assertEqual(kept, [True, True, False])  # of its own, the latest

    def test_a_poster_that_invents_clients_pushes_out_its_own_and_nobody_elses_after_a_restart_too(self) -> None:
        self.flood(60, 20)

    @pytest.mark.real
    def test_a_poster_with_a_hundred_thousand_clients_pushes_out_its_own_and_nobody_elses(self) -> None:
        self.flood(MAX_KEYS, MAX_KEYS)

    def test_of_a_poster_that_has_most_the_client_that_has_most_loses_its_oldest(self) -> None:
        self.keys.close()
        self.keys = Keys(self.keys.path, most=5)
        for number, client in enumerate(("one", "many", "many", "two")):
            self.keys.add([part(number)], 0.0, client, "host")
        self.keys.add([part(4)], 0.0, "many", "other")
        self.keys.add([part(5)], 0.0, "three", "host")
        self.assertEqual([number for number in range(6) if self.keys.digest(part(number).key) is None], [1])

    def test_rows_of_before_that_say_whose_client_alone_are_one_posters_and_go_before_others(self) -> None:
        self.keys.add([part(number) for number in range(3)], 0.0, "web/1")
        self.keys._database.execute("UPDATE keys SET client = ?", (b2("web/1"),))
        self.keys.close()
        self.keys = Keys(self.keys.path, most=3)
        self.keys.add([part(3)], 0.0, "web/1", "host")
        self.assertEqual([number for number in range(4) if self.keys.digest(part(number).key) is None], [0])

    def test_shares_are_as_they_were_where_the_disk_does_not_take_what_was_to_be_written(self) -> None:
        self.keys.close()
        self.keys = Keys(self.keys.path, most=2)
        self.keys.add([part(0), part(1)], 0.0, "one")
        self.fill(0)
        self.keys.add([part(number) for number in range(2, 4000)], 0.0, "two")
        self.assertEqual((self.keys.count, self.keys._shares.take()), (2, b2("", "one")))
        self.keys._shares.add(b2("", "one"))

    def test_a_file_of_before_that_does_not_say_whose_its_keys_are_is_read(self) -> None:
        self.keys.add([part(0)], 0.0)
        self.keys._database.execute("DROP INDEX keys_of_clients")
        self.keys._database.execute("ALTER TABLE keys DROP COLUMN client")
        self.keys.close()
        self.keys = Keys(self.keys.path, most=1)
        self.assertEqual((self.keys.problem, self.keys.count, self.keys.digest(part(0).key)), (None, 1, b"d" * 16))

    def test_of_what_a_full_disk_does_not_take_so_many_are_known_and_one_past_them_is_not(self) -> None:
        self.patch(module, "MAX_UNWRITTEN", 3)
        with mock.patch.object(Keys, "_write", side_effect=sqlite3.OperationalError("database or disk is full")):
            for number in range(4):
                self.keys.add([part(number)], 0.0)
        self.assertIn("3 keys of posts are known until this Agent ends, and 1 that came before them are not", str(self.keys.write_problem))
        self.assertEqual([self.keys.digest(part(number).key) is None for number in range(4)], [True, False, False, False])

    def test_a_full_disk_is_tried_again_after_a_while_by_the_clock_that_is_passed_in_and_without_another_post(self) -> None:
        tries = []

        def write(parts: Any) -> None:
            tries.append(len(list(parts)))
            raise sqlite3.OperationalError("database or disk is full")

        with mock.patch.object(self.keys, "_write", write):
            for number in range(5):
                self.keys.add([part(number)], 100.0)
                self.keys.tick(100.0 + RETRY_SECONDS - 0.001)
                known = many(number + 1, "key of a post is", "keys of posts are")
                self.assertIn(f"{known} known until this Agent ends; make room", str(self.keys.write_problem))
            self.assertEqual(tries, [1])
            self.keys.tick(100.0 + RETRY_SECONDS)
            self.keys.tick(100.0 + RETRY_SECONDS)
            self.assertEqual(tries, [1, 5])
        self.keys.tick(100.0 + 2 * RETRY_SECONDS)
        self.assertEqual((self.keys.count, self.keys.write_problem), (5, None))
