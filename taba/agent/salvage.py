"""What can still be read of a damaged SQLite file whose schema is known: row by row, whatever its bytes.

The first page of such a file says nothing but where its tables begin, which is the same in every file of the same schema: it is
replaced by a new one's. What remains is read by ranges of row ids, which are halved around what cannot be read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from taba.agent.locks import private

MAX_TRIES = 20_000  # ranges that are tried: some seconds, however much is damaged
_PAGE = 4096
_HIGHEST = 2**40  # of row ids, where none can be asked for


def mend_first_page(path: str, fresh: str) -> None:
    """Give the file `path` the first page of the empty file `fresh`, which has the same schema. Its own is kept as `<path>.first-page`."""
    with open(fresh, "rb") as file:
        page = bytearray(file.read(_PAGE))
    page[24:28], page[92:96] = b"\0\0\0\2", b"\0\0\0\1"  # the change counter and its copy differ: the file's size is asked for
    page[32:40] = bytes(8)  # no free pages are known
    with open(path, "r+b") as file:
        first = file.read(_PAGE)
        if not os.path.exists(path + ".first-page"):  # a kill may have come since it was replaced
            with open(path + ".first-page", "wb", opener=private) as kept:
                kept.write(first)
        file.seek(0)
        file.write(page)
        if len(first) < _PAGE or os.path.getsize(path) % _PAGE:  # cut off: the rest of a page reads as zeros
            file.truncate((os.path.getsize(path) + _PAGE - 1) // _PAGE * _PAGE)
        file.flush()
        os.fsync(file.fileno())


def readable_rows(database: sqlite3.Connection, columns: str, table: str) -> Iterator[tuple[Any, ...]]:
    """All rows of `table` that can be read, as (id, *columns), in the order of their ids."""
    try:
        highest = database.execute(f"SELECT max(id) FROM {table}").fetchone()[0]
    except sqlite3.DatabaseError:
        highest = None
    ranges = [(1, highest if isinstance(highest, int) else _HIGHEST)]
    tries = 0
    while ranges and tries < MAX_TRIES:
        low, high = ranges.pop()
        tries += 1
        try:
            for row in database.execute(f"SELECT id, {columns} FROM {table} WHERE id BETWEEN ? AND ? ORDER BY id", (low, high)):
                if isinstance(row[0], int) and row[0] >= low:
                    low = row[0] + 1
                    yield row
        except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError):
            if low < high:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]


def move(path: str, target: str) -> None:
    """Rename a SQLite file with what lies beside it. The file itself goes last: until then all is as it was."""
    for suffix in ("-wal", "-shm", ".first-page", ""):
        if os.path.exists(path + suffix):
            os.replace(path + suffix, target + suffix)
