"""Which store an Agent sends to: its id and number of buckets, kept beside the spool. It is learned once, and changed only on purpose.

The caps that its Servers told last are kept with it, and the version in which batches were written: what an Agent reads before it hears
of them is decided on by these.

A damaged file is mended where one of its two lines is whole. Where none is, nobody knows any more which store is the right one: it stays
where it is, for a person, and until that has removed it no store is taken, and nothing is sent. All is kept meanwhile.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from taba.agent.locks import private
from taba.batch import MAX_STORE_ID
from taba.bounds import MAX_BUCKETS
from taba.caps import Caps, read_caps
from taba.damage import is_sealed, keep_aside, seal, unseal
from taba.errors import TabaError


class Store(NamedTuple):
    """A store as a Server tells of it: its id, its number of buckets, and the stores that it succeeds."""

    id: str
    buckets: int
    succeeds: tuple[str, ...] = ()


class StoreUnknown(TabaError, ValueError):
    """A Server does not know its store yet."""


def read_store(told: Any) -> Store:
    """The store in what a Server's `/v1/status` says. Raises ValueError for what tells of none."""
    if not isinstance(told, dict):
        raise ValueError("a Server's status tells of its store")
    id, buckets, succeeds = told.get("id"), told.get("buckets"), told.get("succeeds", [])
    if buckets is None and "buckets" in told:
        raise StoreUnknown("it has not reached its store yet, and nothing is sent before it has: see what it says (taba status)")
    if type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS:
        raise ValueError(f"{buckets!r} buckets")
    if not isinstance(id, str) or not 1 <= len(id) <= MAX_STORE_ID:
        raise ValueError(f"{id!r} is no store's id")
    if not isinstance(succeeds, list) or not all(isinstance(one, str) for one in succeeds):
        raise ValueError("a store succeeds a list of stores")
    return Store(id, buckets, tuple(succeeds))


class PinFile:
    """The store that is kept in the file `path`, and its `caps`; None before one is met, or while it `is_held`.

    `problem` says what of the file was damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self.store: Store | None = None
        self.caps = Caps()
        self.version: int | None = None
        self.problem: str | None = None
        self._unreadable: str | None = None  # why
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return  # the first Server that is met tells
        except OSError as error:
            self._hold(error.strerror or f"{error}")
            return
        sealed, damaged = is_sealed(content), 0
        if sealed:
            texts, damaged, _ = unseal(content)
        else:  # of a version before
            texts = [content.decode("utf-8", "replace")]
        try:
            told = json.loads(texts[-1])
            self.store = read_store(told)
        except (IndexError, ValueError, RecursionError):
            self._hold("it is damaged")
            return
        with suppress(ValueError):  # the store is known nevertheless; its Servers tell the caps again
            self.caps = read_caps(told.get("caps"))
        version = told.get("batch_version")
        self.version = version if type(version) is int else None
        if damaged:
            self._mend()
        elif not sealed:
            with suppress(OSError):  # it is read as it is, too
                self._write(self.store, self.caps, self.version)

    @property
    def is_held(self) -> bool:
        """Whether nobody knows which store is the right one, for the file cannot be read and no person has removed it."""
        if self._unreadable is not None and not os.path.lexists(self._path):
            self._unreadable = self.problem = None
        return self._unreadable is not None

    def _hold(self, reason: str) -> None:
        self._unreadable, self.problem = reason, self._sentence(reason, "")

    def _sentence(self, reason: str, found: str) -> str:
        kept = "nothing is sent, and all that is recorded is kept here, until somebody says"
        cure = f"if the store that its Servers have now{found} is the one, remove that file; if not, see --server"
        return f"{self._path} cannot be read ({reason}), so this Agent does not know any more which store it sent to: {kept}: {cure}"

    def _mend(self) -> None:
        kept = keep_aside(f"{self._path}")
        self.problem = f"{self._path}, which says to which store is sent, was damaged, and nothing of it is lost; {kept}; look at its disk"
        assert self.store is not None
        try:
            self._write(self.store, self.caps, self.version)
        except OSError as error:
            self.problem += f" (it cannot be written anew: {error.strerror})"

    def meets(self, store: Store) -> bool:
        """A Server serves `store`: whether that is the one to send to, by now. Raises OSError where it cannot be kept."""
        known = self.store
        if self.is_held and self._unreadable is not None:
            self.problem = self._sentence(self._unreadable, f" ({store.id[:8]}…)")
            return False
        if known is not None and store.id != known.id and known.id not in store.succeeds:
            return False
        if known is None or store[:2] != known[:2]:
            self._write(store, self.caps, self.version)
            self.store = store
        return True

    def keep(self, caps: Caps) -> None:
        """The Servers of the store that is known tell these caps. Raises OSError where they cannot be kept: then it is tried again."""
        if self.store is not None and caps != self.caps:
            self._write(self.store, caps, self.version)
            self.caps = caps

    def keep_version(self, version: int) -> None:
        """Batches are written in this one. Raises OSError where it cannot be kept: then it is tried again."""
        if self.store is not None and version != self.version:
            self._write(self.store, self.caps, version)
            self.version = version

    def _write(self, store: Store, caps: Caps, version: int | None) -> None:
        fresh = self._path.with_suffix(self._path.suffix + ".new")
        with open(fresh, "wb", opener=private) as file:
            kept = {"id": store.id, "buckets": store.buckets, "caps": caps._asdict(), "batch_version": version}
            file.write(seal(json.dumps(kept)))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the name, and any store would do
        os.replace(fresh, self._path)
