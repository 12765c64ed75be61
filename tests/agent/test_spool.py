"""The spool: order, bound, checksums, and files that are none."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import salvage
from taba.agent.ages import Moment
from taba.agent.outbox import EncodedBatch, OtherVersion
from taba.agent.spool import MAX_ASIDE_ROWS, ROW_BYTES, Spool, SpoolFull
from taba.agent.spooled import SCHEMA, VERSION, is_damage
from taba.batch import KEY_BYTES, BatchId
from tests.agent.moments import at
from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
UNSYNCED = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* the disk syncs nothing while this file is there */
static int fails(void) { return access(getenv("TABA_TEST_UNSYNCED"), F_OK) == 0 ? (errno = EIO) : 0; }
int fsync(int fd) { return fails() ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return fails() ? -1 : (int)syscall(SYS_fdatasync, fd); }
"""
# where the disk does not sync what is added, a kill comes at once: what is there then
KILLED = """
import os, sys
from pathlib import Path
from taba.agent.spool import Spool, SpoolFull
from tests.agent.test_spool import spooled
spool = Spool(sys.argv[1])
spool.add([spooled(1)])
broken = Path(os.environ["TABA_TEST_UNSYNCED"])
broken.touch()
try:
    spool.add([spooled(2, b"x" * 9000), spooled(3)], (b"outbox", b"table"))
except SpoolFull as error:
    print(error)
if "again" in sys.argv:
    broken.unlink()
    spool.add([spooled(2)])
os._exit(9)
"""

S, T = b"s" * 16, b"t" * 16


def spooled(number: int, content: bytes = b"content", stream: bytes = S, bucket: int = 3) -> EncodedBatch:
    return EncodedBatch(BatchId(stream, bucket, number), at(1.5), 10, content)


class Full:
    """A database whose disk is full: nothing is committed."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    def execute(self, command: str, *arguments: Any) -> Any:
        if command == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._database.execute(command, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class SpoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(tempfile.mkdtemp(), "a.spool")

    def open(self, bound: int = 1 << 20) -> Spool:
        spool = Spool(self.path, bound)
        self.addCleanup(spool.close)
        return spool

    @pytest.mark.real
    def test_what_the_disk_did_not_sync_was_not_added_whoever_is_killed_right_after(self) -> None:
        needs_program("cc")
        directory = Path(self.path).parent
        (directory / "unsynced.c").write_text(UNSYNCED)
        library = directory / "unsynced.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, directory / "unsynced.c"], check=True)
        environ = {**os.environ, "LD_PRELOAD": str(library), "TABA_TEST_UNSYNCED": str(directory / "broken"), "PYTHONPATH": str(ROOT)}
        for more, there in ((), [1]), (("again",), [1, 2]):
            (directory / "broken").unlink(missing_ok=True)
            self.path = str(directory / f"spool{len(more)}")
            command = [sys.executable, "-c", KILLED, self.path, *more]
            done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (9, "the disk: disk I/O error\n", ""))
            spool = self.open()
            self.assertEqual(([row.id.number for row in spool.rows(S, 3, 0, 10)], spool.journal(None), spool.problem), (there, None, None))

    def test_where_the_disk_takes_no_new_file_all_is_as_it_was_and_another_try_brings_it_over(self) -> None:
        spool = self.open()
        spool.add([spooled(1, b"one"), spooled(2, b"two")])

        def refuses(command: str, row: Any) -> None:
            raise OSError("no space left on the device")

        bring, spool._bring = spool._bring, refuses  # type: ignore[method-assign]
        for _ in range(2):
            with self.assertRaises(OSError):
                spool.heal("its disk")
            self.assertEqual((spool.read(BatchId(S, 3, 2)), spool.lost, spool.batches), (b"two", {}, 2))
        spool._bring = bring  # type: ignore[method-assign]
        spool.heal("its disk")
        self.assertEqual((spool.read(BatchId(S, 3, 1)), spool.lost, spool.batches), (b"one", {}, 2))
        self.assertIn("2 batches were brought over, 0 with 0 events", str(spool.problem))

    def test_batches_come_back_in_order_and_unchanged_after_reopening(self) -> None:
        spool = self.open()
        spool.add([spooled(2, b"two"), spooled(1, b"one"), spooled(1, b"other", T), spooled(3, b"three")])
        spool.close()
        spool = self.open()
        self.assertEqual([row.id.number for row in spool.rows(S, 3, 1, 10)], [2, 3])
        self.assertEqual([spool.read(BatchId(S, 3, number)) for number in (1, 2, 3, 4)], [b"one", b"two", b"three", None])
        self.assertEqual((spool.next_lane(None), spool.next_lane((S, 3)), spool.next_lane((T, 3))), ((S, 3), (T, 3), None))
        self.assertEqual((spool.batches, spool.bytes), (4, 16))

    def test_the_bound_is_kept_to_the_byte_and_nothing_is_written_beyond_it(self) -> None:
        spool = self.open(2 * (ROW_BYTES + 7))
        spool.add([spooled(1), spooled(2)])
        self.assertEqual(spool.free, 0)
        with self.assertRaises(SpoolFull):
            spool.add([spooled(3, b"")])
        spool.forget([BatchId(S, 3, 1)])
        with self.assertRaises(SpoolFull):
            spool.add([spooled(3), spooled(4)])
        self.assertEqual([row.id.number for row in spool.rows(S, 3, 0, 10)], [2])
        spool.add([spooled(3)])
        self.assertEqual((spool.free, spool.batches, spool.bytes), (0, 2, 14))

    def test_a_batch_that_is_there_already_counts_once(self) -> None:
        spool = self.open()
        spool.add([spooled(1), spooled(2)])
        spool.add([spooled(2), spooled(3)])
        self.assertEqual((spool.batches, spool.bytes), (3, 21))

    def test_what_a_comment_of_the_file_says_is_no_part_of_its_format(self) -> None:
        for number, said in enumerate((" /* a batch of version 3 */", " /* a batch of version 41 */", "")):
            spool = self.open()
            spool.add([spooled(number + 1, stream=T)])
            spool.close()
            self.assertNotIn("version", self.sql())
            self.change(
                "PRAGMA writable_schema=ON",
                f"UPDATE sqlite_master SET sql = replace(sql, 'content BLOB NOT NULL)', 'content BLOB NOT NULL{said})')",
            )
            self.assertIn(said, self.sql())
            spool = self.open()
            self.assertEqual((spool.problem, spool.batches), (None, 1))
            spool.close()
            os.unlink(self.path)

    def sql(self) -> str:
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            return str(other.execute("SELECT sql FROM sqlite_master WHERE name = 'batches'").fetchone()[0])

    def test_a_row_that_does_not_match_its_checksum_is_none_and_the_others_are_there(self) -> None:
        spool = self.open()
        spool.add([spooled(1), spooled(2)])
        with sqlite3.connect(self.path) as other:
            other.execute("UPDATE batches SET content = x'00112233445566' WHERE number = 1")
        other.close()
        self.assertEqual([spool.read(BatchId(S, 3, 1)), spool.read(BatchId(S, 3, 2))], [None, b"content"])

    def test_a_row_whose_bytes_are_a_text_that_is_none_is_torn_and_one_that_says_nonsense_of_its_age_is_damage(self) -> None:
        spool = self.open()
        spool.add([spooled(1), spooled(2)])
        self.change("UPDATE batches SET content = CAST(x'ff00ff' AS TEXT) WHERE number = 1")
        self.assertEqual((spool.read(BatchId(S, 3, 1)), spool.torn(BatchId(S, 3, 1))), (None, bytes.fromhex("ff00ff")))
        self.assertEqual((spool.read(BatchId(S, 3, 2)), spool.torn(BatchId(S, 3, 3))), (b"content", None))
        for key in ("CAST(x'ff00ff' AS TEXT)", "x''"):
            self.change(f"UPDATE batches SET key = {key} WHERE number = 2")
            if key == "x''":
                self.assertEqual(len(spool.rows(S, 3, 0, 10)), 2)
            else:
                with self.assertRaises(sqlite3.DatabaseError) as raised:
                    spool.rows(S, 3, 0, 10)
                self.assertTrue(is_damage(raised.exception))

    def change(self, *commands: str) -> None:
        """Damage a row as a disk might."""
        with sqlite3.connect(self.path) as other:
            for command in commands:
                other.execute(command)
        other.close()

    def test_what_was_counted_elsewhere_is_removed_as_far_as_it_is_here(self) -> None:
        spool = self.open()
        spool.add([spooled(1), spooled(2)])
        spool.discard([BatchId(S, 3, 2), BatchId(S, 3, 7)])
        self.assertEqual([row.id.number for row in spool.rows(S, 3, 0, 10)], [1])
        self.assertEqual((spool.last(S, 3), spool.last(T, 3), spool.batches), (1, 0, 1))

    def test_what_a_full_disk_does_not_remove_is_counted_as_it_was(self) -> None:
        spool = self.open()
        spool.add([spooled(1), spooled(2)])
        database, spool._database = spool._database, cast(Any, Full(spool._database))
        for remove in (spool.forget, spool.discard):
            with self.assertRaises(sqlite3.OperationalError):
                remove([BatchId(S, 3, 1), BatchId(S, 3, 2)])
            self.assertEqual((spool.batches, spool.bytes, [row.id.number for row in spool.rows(S, 3, 0, 10)]), (2, 14, [1, 2]))
        spool._database = database
        spool.forget([BatchId(S, 3, 2)])
        self.assertEqual((spool.batches, spool.bytes, spool.used), (0, 0, 0))

    def test_damage_that_is_found_while_what_was_there_already_is_counted_is_the_files_fault_and_is_mended(self) -> None:
        spool = self.open()
        spool.add([spooled(1)])
        count = spool._count

        def damaged() -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        spool._count = damaged  # type: ignore[method-assign]
        with self.assertRaises(SpoolFull) as raised:
            spool.add([spooled(1), spooled(2)])
        self.assertTrue(raised.exception.is_damaged)
        spool._count = count  # type: ignore[method-assign]
        spool.heal("it was found to be damaged")
        spool.add([spooled(1), spooled(2)])
        self.assertEqual((spool.batches, spool.bytes, spool.lost), (2, 14, {}))

    def test_a_table_is_kept_with_the_batches_that_it_tells_of_and_belongs_to_one_outbox(self) -> None:
        spool = self.open(ROW_BYTES + 7)
        spool.add([spooled(1)], (b"a", b"first"))
        with self.assertRaises(SpoolFull):
            spool.add([spooled(2)], (b"a", b"second"))
        spool.close()
        spool = self.open()
        self.assertEqual((spool.journal(b"a"), spool.journal(b"b")), (b"first", None))
        self.assertEqual(spool.journal(None), b"first")  # for an outbox that is new: the one before is gone

    def test_what_is_kept_aside_is_bounded_and_the_latest_stays(self) -> None:
        spool = self.open()
        for number in range(MAX_ASIDE_ROWS + 3):
            spool.keep_aside(BatchId(S, 3, number), "no", b"x")
        numbers = [number for _, number, _, _ in spool.aside()]
        self.assertEqual(numbers, list(range(3, MAX_ASIDE_ROWS + 3)))

    def test_a_row_reads_back_with_what_age_is_told_by_and_the_part_of_a_post(self) -> None:
        spool = self.open()
        for number, created in enumerate((Moment(1.5, 7, None), Moment(2.5, 2**32 - 1, 0)), start=1):
            spool.add([EncodedBatch(BatchId(S, 3, number), created, 10, b"x", b"k" * KEY_BYTES)])
            (row,) = spool.rows(S, 3, number - 1, 1)
            self.assertEqual((row.created, row.key), (created, b"k" * KEY_BYTES))
        self.assertEqual(spool.posted(), [b"k" * KEY_BYTES])

    def test_a_file_of_another_format_is_refused_and_left_as_it_is(self) -> None:
        with sqlite3.connect(self.path) as other:
            other.execute("CREATE TABLE batches (id INTEGER PRIMARY KEY)")
        other.close()
        with self.assertRaisesRegex(OtherVersion, f"a.spool is of format 0; this version reads {VERSION}"):
            self.open()
        with sqlite3.connect(self.path) as other:
            self.assertEqual(other.execute("SELECT name FROM sqlite_master").fetchall(), [("batches",)])
        other.close()

    def test_a_file_of_a_newer_format_is_refused_and_left_as_it_is(self) -> None:
        self.open().close()
        with sqlite3.connect(self.path) as other:
            other.execute("ALTER TABLE batches ADD COLUMN more BLOB")
            other.execute(f"PRAGMA user_version={VERSION + 1}")
        other.close()
        with self.assertRaisesRegex(OtherVersion, f"is of format {VERSION + 1}; this version reads {VERSION}: let that version's Agent"):
            self.open()
        with sqlite3.connect(self.path) as other:
            self.assertEqual(other.execute("PRAGMA user_version").fetchone(), (VERSION + 1,))
        other.close()

    def test_a_file_of_another_format_is_refused_where_its_columns_are_the_same(self) -> None:
        for version in (VERSION - 1, VERSION + 1):
            with sqlite3.connect(self.path) as other:
                other.executescript(SCHEMA.replace(f"_{VERSION} ", f"_{version} ") + f"PRAGMA user_version={version}")
            other.close()
            with self.assertRaisesRegex(OtherVersion, f"is of format {version}; this version reads {VERSION}"):
                self.open()
            os.remove(self.path)

    def test_a_file_that_is_no_database_is_set_aside(self) -> None:
        self.patch(salvage, "MAX_TRIES", 1000)  # enough for so few rows
        for number in (1, 2):  # under a name each
            with open(self.path, "wb") as file:
                file.write(os.urandom(10_000))
            spool = self.open()
            self.assertIn("was damaged (file is not a database): 0 batches were brought over", str(spool.problem))
            spool.add([spooled(1)])
            spool.close()
            self.assertGreaterEqual(os.path.getsize(f"{self.path}.damaged-{number}"), 10_000)
            os.unlink(self.path)

    def make(self, batches: int, length: int) -> bytes:
        """The bytes of a spool with so many batches."""
        spool = self.open(1 << 30)
        spool.add([spooled(number, bytes([number % 256]) * length) for number in range(1, batches + 1)])
        spool.close()
        with open(self.path, "rb") as file:
            return file.read()

    def damage(self, content: bytes) -> Spool:
        for name in os.listdir(os.path.dirname(self.path)):
            os.unlink(os.path.join(os.path.dirname(self.path), name))
        with open(self.path, "wb") as file:
            file.write(content)
        spool = self.open(1 << 30)
        self.addCleanup(spool.close)
        return spool

    @pytest.mark.real
    def test_whatever_byte_of_its_first_page_is_wrong_it_opens_and_has_every_batch(self) -> None:
        self.patch(salvage, "MAX_TRIES", 1000)  # enough for so few rows
        good = self.make(20, 700)
        salvaged = 0
        for place, offset in enumerate([*range(0, 108), *range(108, 4096, 47)]):
            flip = (0xFF, 0x01)[place % 2]
            content = bytearray(good)
            content[offset] ^= flip
            spool = self.damage(bytes(content))
            read = [spool.read(BatchId(S, 3, number)) for number in range(1, 21)]
            self.assertEqual(read, [bytes([number]) * 700 for number in range(1, 21)], (offset, flip, spool.problem))
            spool.add([spooled(21)])
            self.assertEqual((len(spool.rows(S, 3, 0, 100)), spool.lost), (21, {}))
            salvaged += spool.problem is not None
            spool.close()
        self.assertGreater(salvaged, 40)

    def test_whatever_page_is_torn_it_opens_and_what_is_not_on_that_page_is_there(self) -> None:
        self.patch(salvage, "MAX_TRIES", 1000)  # enough for so few rows
        good = self.make(40, 1500)
        for page in range(len(good) // 4096):
            content = bytearray(good)
            content[4096 * page : 4096 * page + 4096] = os.urandom(4096)
            spool = self.damage(bytes(content))
            rows = {row.id.number: spool.read(row.id) for row in spool.rows(S, 3, 0, 100)}
            there = {number for number, content in rows.items() if content == bytes([number]) * 1500}
            self.assertEqual(rows.keys() - there, {number for number, content in rows.items() if content is None})
            if page != 1:  # the root of the table: nobody knows its other pages
                self.assertGreater(len(there), 30, page)
            if page != 2:  # the root of the index: nobody knows what was lost
                self.assertEqual({*rows, *(id.number for id in spool.lost)}, set(range(1, 41)), page)
            spool.close()

    def test_a_file_that_was_cut_off_keeps_what_is_before_the_cut(self) -> None:
        self.patch(salvage, "MAX_TRIES", 1000)  # enough for so few rows
        good = self.make(40, 1500)
        for length in (0, 1, 100, 4096, 4097, 5 * 4096, 5 * 4096 + 17, len(good) - 1, len(good) - 4096):
            spool = self.damage(good[:length])
            there = [row.id.number for row in spool.rows(S, 3, 0, 100)]
            read = [spool.read(BatchId(S, 3, number)) for number in there]
            self.assertLessEqual(read.count(None), 1)  # cut off within its last page: counted when it is sent
            self.assertTrue(all(content in (None, bytes([number]) * 1500) for number, content in zip(there, read, strict=True)))
            self.assertEqual(bool(there), length > 6 * 4096, length)
            spool.add([spooled(41)])
            spool.close()
