"""Directories: a service's own, made for its user alone and taken from nobody else; and the one it works in. Standard library only."""

from __future__ import annotations

import os
import stat
import sys
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


def python_of(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as `python -m` does, but for one thing: nothing that lies in the working directory is imported.

    `-m` puts that directory before all else, the standard library too: whoever may write there would have code run as this user.
    """
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", module, *arguments]
    run = f"import sys; sys.path.remove(''); import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", run, *arguments]


def strangers_in(status: os.stat_result, user: int) -> str | None:
    """Why `user` cannot rely on what lies in a directory: another has it, or everybody may write there. None where it can."""
    if status.st_uid not in (user, 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"may be written to by everybody (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
