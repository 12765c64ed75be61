"""What was made of keys that came lately, and is made again of none of them while they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lately(dict[K, V]):
    """Gives of each key, by [], what `make` makes of it; what that raises, it raises. In two generations of `most` keys each, so that none
    is forgotten while it comes: the younger one is what this dict holds, and finding a key there is no call of Python."""

    def __init__(self, make: Callable[[K], V], most: int):
        super().__init__()
        self._old: dict[K, V] = {}
        self._make, self._most = make, most

    def __missing__(self, key: K) -> V:
        found = self._old[key] if key in self._old else self._make(key)
        if len(self) >= self._most:
            self._old = self.copy()
            self.clear()
        self[key] = found
        return found

    @property
    def kept(self) -> int:
        """How many keys are remembered, in both."""
        return len(self) + len(self._old)
