"""A transaction of SQLite's that is over when its block is, however that ends: what is left open would refuse every later one."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError)  # what a damaged file raises; the latter two of what is in the damage
_NO_TEXT = "it is damaged, and what is said of it is no text"
_TROUBLE = ("unable to open", "is full", "is locked", "I/O error", "readonly")


class Connection(sqlite3.Connection):
    """One of which also those errors are SQLite's whose words have something of a damaged file that is no text."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError(_NO_TEXT) from error

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().executemany(*arguments)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError(_NO_TEXT) from error


def is_trouble(error: Exception) -> bool:
    """Whether the disk or the directory is at fault, and not the file: it is as good as it was."""
    return any(words in f"{error}" for words in _TROUBLE)


def is_full(error: Exception) -> bool:
    """Whether the disk has no room: SQLite says of a quota, and of its index in shared memory, that reading or writing failed."""
    if isinstance(error, sqlite3.Error):
        return any(words in f"{error}" for words in ("is full", "I/O error"))
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def one_line(error: Exception) -> str:
    """What it says, in one line."""
    return " ".join(f"{error}".split())


def open_in_any_case(open: Callable[[], None], open_full: Callable[[Exception], None], mend: Callable[[Exception], None]) -> None:
    """`open`; what that raises of a full disk is `open_full`'s, what else SQLite says is `mend`'s, which raises what is no damage; whatever
    else it is is the caller's."""
    try:
        open()
    except OSError as error:
        if not is_full(error):
            raise
        open_full(error)
    except DAMAGE as error:
        (open_full if is_full(error) else mend)(error)


def open_full(path: str, error: Exception, holds_any: Callable[[sqlite3.Connection], bool]) -> tuple[sqlite3.Connection, bool]:
    """A file on a disk that is full, as `error` says, to be read, and to be written once there is room; and whether an empty database in
    memory stands in for it, since it is not there or `holds_any` says that nothing is in it.

    Nobody else may have it open: the index of its log is in memory, which the file beside it, that others look at, has no room for.
    Raises sqlite3.OperationalError where nobody can tell what is in it, and whatever else `holds_any` raises.
    """
    if os.path.exists(path) and os.path.getsize(path):
        found = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        is_any = False
        try:
            found.execute("PRAGMA locking_mode=EXCLUSIVE")
            is_any = holds_any(found)
        except DAMAGE as fault:
            raise sqlite3.OperationalError(f"{fault}; {one_line(error)}") from fault
        finally:
            if not is_any:
                found.close()
        if is_any:
            return found, False
    return sqlite3.connect(":memory:", isolation_level=None), True


class Transaction:
    """BEGIN IMMEDIATE … COMMIT; ROLLBACK when something is raised, by the commit itself too: a full disk leaves it open.

    What a commit wrote, and the disk then did not sync, lies in the log, whole: who opens the file after a kill would have it all the same.
    So something else is written over it before anybody hears that it failed, and does what is only right where it did.
    """

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        is_ended = kind is not None
        try:
            if kind is None:
                self._database.execute("COMMIT")
                is_ended = True
        finally:
            self._roll_back()
            if not is_ended:
                self._write_over()

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _write_over(self) -> None:
        # what it says is what the file says already; that this is not synced either does not matter: until the host dies it is there
        with suppress(sqlite3.Error):
            [(version,)] = self._database.execute("PRAGMA user_version")
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(f"PRAGMA user_version={version}")
                self._database.execute("COMMIT")
            finally:
                self._roll_back()
