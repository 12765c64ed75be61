"""Directories of a service's own: made for its user alone, and taken from nobody else. Standard library only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_directory(directory: Path) -> None:
    """Make it, and what is missing above it, for this user alone; where it is there, leave it as it is. Raises OSError."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not directory.is_dir():
        raise NotADirectoryError(20, "Not a directory")


@contextmanager
def own_alone() -> Iterator[None]:
    """Have what is made meanwhile be this user's alone until it is given a mode of its own, whatever the umask."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def strangers_in(status: os.stat_result, user: int) -> str | None:
    """Why `user` cannot rely on what lies in a directory: another has it, or everybody may write there. None where it can."""
    if status.st_uid not in (user, 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"may be written to by everybody (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
