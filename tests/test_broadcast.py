"""What is said to many: the checksum with which each one's gzip file ends."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import broadcast
from taba.broadcast import Said

CHECKSUMS = st.integers(0, 2**32 - 1)


class Checksums(SynchronousTestCase):
    @given(st.text(max_size=300), st.lists(CHECKSUMS, min_size=1, max_size=5), st.booleans())
    def test_it_is_zlibs_whether_it_is_summed_or_reckoned(self, text: str, befores: list[int], is_summed: bool) -> None:
        most = broadcast.MAX_SUMMED
        broadcast.MAX_SUMMED = most if is_summed else -1
        try:
            said = Said(text)
            self.assertEqual([said.checksum(before) for before in befores], [zlib.crc32(text.encode(), before) for before in befores])
        finally:
            broadcast.MAX_SUMMED = most

    def test_what_many_hear_is_gone_through_for_a_few_of_them(self) -> None:
        summed: list[int] = []

        def crc32(content: bytes, before: int = 0) -> int:
            summed.append(len(content))
            return zlib.crc32(content, before)

        self.patch(broadcast, "zlib", SimpleNamespace(crc32=crc32))
        self.patch(broadcast, "MAX_SUMMED", 3000)
        said = Said("x" * 1000)
        for before in range(3):  # the bound
            said.checksum(before)
        self.assertEqual(summed, [1000] * 3)
        said.checksum(3)  # one past it
        for before in range(1000):
            self.assertEqual(said.checksum(before), zlib.crc32(said.plain, before))
        self.assertEqual(summed, [1000] * 4)
