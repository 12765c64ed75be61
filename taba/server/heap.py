"""How much of what it freed a Server keeps: bodies, and the arrays that are made of them, are as large as those before."""

from __future__ import annotations

from typing import Any

from taba.bounds import MiB
from taba.parts import find

KEPT_BYTES = 64 * MiB  # that are free at the end of the heap: four of the largest envelopes, with what is made of them
BLOCK_BYTES = 32 * MiB  # what is smaller is had of the heap; glibc takes no more

_plain = find("taba.server.fold._plain")


def keep_heap(native: Any = _plain) -> None:
    """Have this process keep so much, for as long as it is: fresh memory is cleared page by page, which costs more than what is written."""
    if native is not None:  # else, as with a C library that cannot be told, it is given back and had again
        native.keep_heap(KEPT_BYTES, BLOCK_BYTES)
