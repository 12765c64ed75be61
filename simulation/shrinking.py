"""Making a failure's trace short: the same seed without as many of its faults as can be left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MAX_TRIES = 120  # runs; a trace that is not the shortest is short enough


def shrink(numbers: Sequence[int], fails: Callable[[frozenset[int]], bool], tries: int = MAX_TRIES) -> frozenset[int]:
    """The faults of `numbers` that may be left out while it still `fails` without them. After Zeller: delta debugging, 1999."""
    left = list(numbers)
    gone: frozenset[int] = frozenset()
    size = max(1, len(left) // 2)
    while left and tries > 0:
        for start in range(0, len(left), size):
            some = left[start : start + size]
            tries -= 1
            if fails(gone | frozenset(some)):
                gone |= frozenset(some)
                left = [number for number in left if number not in gone]
                break
            if tries <= 0:
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return gone
