"""What is said to many: in order, whoever reads and whoever does not; the checksum with which each one's gzip file ends."""

from __future__ import annotations

import http.client
import zlib
from random import Random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import threads
from twisted.trial.unittest import SynchronousTestCase

from taba import broadcast
from taba.broadcast import Broadcast, Said
from taba.calls import Answer, Call
from taba.tokens import OPEN
from taba.web import Api
from tests.sites import Served, route

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


class Heard(Served):
    def broadcast(self) -> Broadcast:
        """One that who asks for /hear listens to."""
        said = Broadcast()

        async def hear(call: Call) -> Answer:
            return Answer(said, content_type="text/plain")

        self.serve(Api([route("GET", "/hear", hear, token=OPEN)]))
        return said

    async def breathe(self) -> None:
        await self.wait(0.0)

    async def test_what_is_sent_at_once_and_what_has_to_wait_come_whole_and_in_order_and_what_is_missed_is_counted(self) -> None:
        said = self.broadcast()
        asked = [b"HTTP/1.1\r\nHost: localhost\r\n", b"HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n", b"HTTP/1.0\r\n"]
        peers = [self.connect() for _ in asked]
        for peer, head in zip(peers, asked, strict=True):
            peer.sendall(b"GET /hear " + head + b"\r\n")
        await self.until(lambda: len(said.listeners) == len(peers))
        # nobody reads: the kernel takes some, what is beyond waits, and in the end some is missed
        chance = Random(7)  # what does not compress
        filling = "".join(chr(chance.randrange(33, 127)) for _ in range(50_000))
        number = 0
        while not all(listener.missed for listener in said.listeners):
            await said.say(Said(f"{number:06d}{filling[number % 89 :]}\n"), self.breathe)
            number += 1
        said.end(Said("end\n"))

        def read(peer: object) -> bytes:
            answer = http.client.HTTPResponse(peer)  # type: ignore[arg-type]
            answer.begin()
            content = answer.read()
            return zlib.decompress(content, wbits=31) if answer.getheader("content-encoding") == "gzip" else content

        for content in [await threads.deferToThread(read, peer) for peer in peers]:
            *lines, end = content.decode().splitlines()
            self.assertEqual(end, "end")
            numbers = [int(line[:6]) for line in lines]
            self.assertEqual(numbers, sorted(set(numbers)))
            self.assertEqual([line[6:] for line in lines], [filling[number % 89 :] for number in numbers])
            self.assertGreater(len(numbers), 3)

    async def test_who_reads_hears_all_with_nothing_waiting_in_between(self) -> None:
        said = self.broadcast()
        peer = self.connect()
        peer.sendall(b"GET /hear HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.until(lambda: bool(said.listeners))
        [listening] = self.site.listening
        transport: Any = listening.transport
        await said.say(Said("first\n"), self.breathe)
        await self.until(lambda: transport.offset >= len(transport.dataBuffer))
        writers: list[int] = []
        patched = self.patch(transport, "startWriting", lambda: writers.append(1))
        for number in range(20):
            await said.say(Said(f"{number}\n"), self.breathe)
        self.assertEqual(writers, [])  # the reactor had nothing to do with it
        patched.restore()
        said.end(Said("end\n"))
        answer = http.client.HTTPResponse(peer)

        def read() -> bytes:
            answer.begin()
            return answer.read()

        self.assertEqual((await threads.deferToThread(read)).decode().split(), ["first", *map(str, range(20)), "end"])
