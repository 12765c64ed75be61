"""What is written over something good: an input is patches, as (offset, length, bytes) …"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterable

from tests.fuzz import driver


def patches_of(content: bytes, size: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at + 3 < len(content) and len(found) < 64:
        offset, length = struct.unpack_from("<HB", content, at)
        at += 3
        found.append((offset % size, content[at : at + length]))
        at += length
    return found


def input_of(patches: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<HB", offset, len(patch)) + patch for offset, patch in patches)


def patched(good: bytes, patches: Iterable[tuple[int, bytes]]) -> bytearray:
    whole = bytearray(good)
    for offset, patch in patches:
        whole[offset : offset + len(patch)] = patch[: len(whole) - offset]
    return whole


class Written:
    """Something good of which each input writes over a part. `spare`: where nothing lies so far, and what lies there is looked at.

    Nearly all of it is zeros that nobody reads: what is drawn is drawn from where something lies, and made from what lies there.
    """

    def __init__(self, make: Callable[[], bytes], spare: Iterable[int] = (), head: int = 0):
        self._make, self._spare, self._head = make, spare, head

    @functools.cached_property
    def good(self) -> bytes:
        return self._make()

    @functools.cached_property
    def places(self) -> list[int]:
        return sorted({*self._spare, *(place for place, byte in enumerate(self.good[:65_536]) if byte)})

    def seeds(self) -> list[bytes]:
        """One place after the other: few of these, for each is run."""
        some = self.places[:: max(1, len(self.places) // 24)]
        return [bytes(self._head) + input_of([(place, word)]) for place in some for word in (bytes(8), b"\xff" * 8)]

    def mutate(self, content: bytes, other: bytes, chance: random.Random) -> bytes:
        """Other parts written over, in another way."""
        patches = patches_of(content[self._head :], len(self.good))
        for _ in range(1 << chance.randrange(3)):
            kind = chance.randrange(8)
            if kind == 0 and patches:
                del patches[chance.randrange(len(patches))]
            elif kind == 1 and patches:
                at = chance.randrange(len(patches))
                patches[at] = (patches[at][0], driver.mutate(patches[at][1], b"", chance)[:255])
            elif kind == 2:
                patches += patches_of(other[self._head :], len(self.good))[:4]
            else:
                patches.append(self._one(chance))
        head = bytearray(content[: self._head].ljust(self._head, b"\0"))
        if head and not chance.randrange(4):
            head[chance.randrange(len(head))] = chance.randrange(256)
        return bytes(head) + input_of(patches[-64:])

    def _one(self, chance: random.Random) -> tuple[int, bytes]:
        place, width = chance.choice(self.places), chance.choice((1, 1, 2, 4, 8, 8))
        before = self.good[place : place + width]
        kind = chance.randrange(6)
        if kind == 0:
            number = int.from_bytes(before, "little") ^ 1 << chance.randrange(8 * len(before))
        elif kind == 1:
            number = int.from_bytes(before, "little") + chance.choice((-8, -1, 1, 8))
        elif kind == 2:
            number = chance.choice((0, 1, -1, 2**31, 2**52, 2**62, 2**63 - 1))
        elif kind == 3:
            number = chance.getrandbits(8 * width)
        elif kind == 4:
            number = 0x7F << 8 * chance.randrange(width)
        else:  # what lies elsewhere
            there = chance.choice(self.places)
            number = int.from_bytes(self.good[there : there + width], "little")
        return place, (number % (1 << 8 * width)).to_bytes(width, "little")
