"""What an Agent holds on its host: name, outbox, spool, history, keys, register. All of it is opened, or nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from taba.agent.database import is_full
from taba.agent.history import History
from taba.agent.keys import Keys
from taba.agent.locks import AgentRunning, NameLock, Stranger, check_kept
from taba.agent.outbox import OtherVersion, OutboxFull
from taba.agent.register import Register
from taba.agent.segment import open_outbox
from taba.agent.spool import Spool
from taba.directories import make_directory
from taba.errors import TabaError


class CannotOpen(TabaError):
    """There can be no Agent here; the one line that says why."""


class Home:
    """The place of the Agent `name`: `directory` for the spool, `shm` for the outbox. Raises CannotOpen.

    `problems` are sentences about what was found broken and set aside.
    """

    def __init__(self, name: str, directory: Path, spool_bytes: int, outbox_bytes: int, shm: str, new_id: Callable[[], bytes]):
        self.name = name
        self._undo: list[Callable[[], object]] = []
        self.problems: list[str] = []
        try:
            try:
                self._open_directory(directory)
                self._check_files(str(directory / name))
                self._lock = NameLock(str(directory / f"{name}.lock"), name)
                self._undo.append(self._lock.close)
                if self._lock.is_new:
                    self._undo.append(lambda: os.unlink(self._lock.path))
                self.spool = self._open_spool(str(directory / f"{name}.spool"), spool_bytes)
                self.history = self._open_history(str(directory / f"{name}.history"))
                self.keys = self._open_keys(str(directory / f"{name}.keys"))
                self.register = self._open_register(str(directory / f"{name}.sums"))
            except Stranger as error:
                raise CannotOpen(f"--spool: {str(directory)!r}: {error.filename} {error.strerror}") from None
            except (OSError, sqlite3.Error) as error:
                if is_full(error):  # of a full disk: what is there is not known, or what keeps a second Agent away cannot be made
                    why = "so what an Agent of before left there is not known, or a second one could begin beside this one"
                    raise CannotOpen(f"--spool: {str(directory)!r}: its disk has no room ({error}), {why}; make room there") from None
                raise CannotOpen(f"--spool: {str(directory)!r}: takes a directory to write in: {error}") from None
            try:
                self.outbox, self.segment, problem = open_outbox(name, new_id, outbox_bytes, shm)
            except Stranger as error:
                raise CannotOpen(f"--agent: {name!r}: {error.filename} {error.strerror}") from None
            except (OSError, OutboxFull) as error:
                raise CannotOpen(f"no shared memory for the outbox: {error}; make room in {shm}") from None
            self._undo.append(lambda: self.segment.close())
            if self.segment.is_fresh:
                self._undo.append(lambda: self.segment.remove())
            self.problems += [found for found in (self.spool.problem, self.keys.problem, self.register.damage, problem) if found]
        except (AgentRunning, OtherVersion) as error:
            self.abandon()
            raise CannotOpen(f"{error}") from None
        except BaseException:
            self.abandon()
            raise

    def keep_name(self) -> bool:
        """Whether the outbox had to be made anew, since its segment was gone.

        Raises AgentRunning when another Agent has the name by now, OutboxFull or OSError when there is no room for a new one:
        what is held is in memory that goes with this process.
        """
        if self.segment.is_there:
            if self.segment.is_cut:
                self.segment.mend(self.outbox)
            return False
        self.segment = self.segment.renew(self.outbox)
        return True

    def abandon(self) -> None:
        """Close everything, and remove what was made here: this Agent did not start after all."""
        for undo in reversed(self._undo):
            with contextlib.suppress(OSError):  # what cannot be removed is empty
                undo()

    def close(self) -> None:
        """Let go of everything; what is held stays for the next Agent."""
        self.spool.close()
        self.history.close()
        self.keys.close()
        self.register.close()
        self.segment.close()
        self._lock.close()

    def _open_directory(self, directory: Path) -> None:
        made = [path for path in (directory, *directory.parents) if not path.exists()]
        self._undo += [path.rmdir for path in reversed(made)]
        make_directory(directory)

    @staticmethod
    def _check_files(path: str) -> None:
        """Raise Stranger where a file that an Agent keeps is somebody else's, or could be. What SQLite keeps beside its own counts, too."""
        for kept in (".spool", ".spool.new", ".keys"):
            for beside in ("", "-wal", "-shm", "-journal"):
                check_kept(f"{path}{kept}{beside}")
        for kept in (".lock", ".history", ".history.old", ".spool.list", ".spool.list.new"):
            check_kept(path + kept)
        for kept in (".sums", ".sums.new", ".store", ".store.new"):  # no secrets: others may read them
            check_kept(path + kept, 0o022)

    def _open_spool(self, path: str, spool_bytes: int) -> Spool:
        if not (os.path.lexists(path) or os.path.lexists(path + ".new")):  # which holds all, where a kill ended a salvage
            self._undo.append(lambda: os.unlink(path))
        spool = Spool(path, spool_bytes)
        self._undo.append(spool.close)
        return spool

    def _open_history(self, path: str) -> History:
        is_new = not os.path.exists(path)
        history = History(path)
        if is_new:
            self._undo.append(lambda: os.unlink(path))
        self._undo.append(history.close)
        return history

    def _open_keys(self, path: str) -> Keys:
        if not os.path.exists(path):
            self._undo.append(lambda: os.unlink(path))
        keys = Keys(path)
        self._undo.append(keys.close)
        return keys

    def _open_register(self, path: str) -> Register:
        if not os.path.exists(path):
            self._undo.append(lambda: os.unlink(path))
        register = Register(path)
        self._undo.append(register.close)
        return register
