"""One real store for a class of tests, not one for each of them: they borrow it one after the other, and each finds it as if it were new.

What a test did to keys, scripts, counts and connections is undone before the next one has the store. What was done to the store itself is
not: a store that was ended, stopped, set otherwise, given users or made a replica goes with its test, and the next one has a new one. So
tests do with it what they like; only those that are about how a store is started (a disk, a clock, a Cluster) start it by themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import TestCase

from tests.valkey import EphemeralValkey, converse

SHAPE = (("CONFIG", "GET", "*"), ("ACL", "LIST"), ("ROLE",))  # what keys, scripts and connections do not change
WHOLE = 2  # of a ROLE's reply: the role alone and, of a primary, where its stream is, which moves on


class Started(NamedTuple):
    """A store, and its shape when it was new."""

    store: EphemeralValkey
    shape: Any

    def is_as_new(self) -> bool:
        """Whether it can be handed on; then it is empty."""
        if self.store.is_spoiled:
            return False
        try:
            # nobody of the test before it is left to write; of what is to be called back, nothing waits
            leaving = [("CLIENT", "UNPAUSE"), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("CLIENT", "KILL", "TYPE", "pubsub")]
            converse(self.store.path, leaving)
            if shape_of(self.store) != self.shape:
                return False
            emptying = [("FLUSHALL", "SYNC"), ("SCRIPT", "FLUSH", "SYNC"), ("FUNCTION", "FLUSH", "SYNC"), ("CONFIG", "RESETSTAT")]
            replies = [self.store.call(*command) for command in emptying]
        except OSError:
            return False  # it is ended, which is as good an answer
        return replies == [b"OK"] * len(emptying)


class Shelf:
    """The stores of one class of tests that no test has just now, by how they were started."""

    def __init__(self) -> None:
        self._free: dict[Any, list[Started]] = {}
        self.starts = 0

    def take(self, **how: Any) -> Started:
        free = self._free.get(key_of(how), [])
        while free:
            if (started := free.pop()).is_as_new():
                return started
            started.store.remove()
        self.starts += 1
        store = EphemeralValkey(**how)
        return Started(store, shape_of(store))

    def give_back(self, started: Started, **how: Any) -> None:
        if started.store.is_spoiled:
            started.store.remove()
        else:
            self._free.setdefault(key_of(how), []).append(started)

    def clear(self) -> None:
        """End all that are here."""
        for free in self._free.values():
            while free:
                free.pop().store.remove()


_shelves: dict[type[TestCase], Shelf] = {}


def shelf_of(tests: type[TestCase]) -> Shelf:
    """The shelf of a class, cleared when the last of its tests is over."""
    shelf = _shelves.get(tests)
    if shelf is None:
        shelf = _shelves[tests] = Shelf()
        tests.addClassCleanup(_clear, tests)
    return shelf


def borrow(case: TestCase, **how: Any) -> EphemeralValkey:
    """A store for this test, as `EphemeralValkey(**how)` starts one. It is given back by itself."""
    shelf = shelf_of(type(case))
    started = shelf.take(**how)
    case.addCleanup(shelf.give_back, started, **how)
    return started.store


def shape_of(store: EphemeralValkey) -> Any:
    settings, users, role = (store.call(*command) for command in SHAPE)
    return settings, users, role[:1] + role[WHOLE:] if isinstance(role, list) else role


def key_of(how: dict[str, Any]) -> Any:
    return tuple(sorted((name, str(value)) for name, value in how.items()))


def _clear(tests: type[TestCase]) -> None:
    _shelves.pop(tests).clear()
