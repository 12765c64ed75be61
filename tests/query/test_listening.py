"""Listening: bytes that are events, when one asks anew, and both variants against what breaks."""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from random import Random
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.query import AsyncQuery, BadRequest, NotTaba, Query, ServerUnavailable, listening, questions
from tests.patience import PATIENCE_SECONDS
from tests.query.test_query import Stranger

FIRST, SECOND = {"time": 1.0, "every": 1.0, "aggregates": {"ä": {"value": 1}}}, {"time": 2.0, "every": 1.0, "aggregates": {}}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FULL = b'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n{"error": "full", "detail": "later"}'


def event(content: Any) -> bytes:
    return b"id: 7\ndata: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def sse() -> listening.Sse:
    return listening.Sse(questions.stream({}), "http://127.0.0.1:8280", "Server")


class Bytes(SynchronousTestCase):
    def test_events_are_the_same_however_the_bytes_come(self) -> None:
        said = event(FIRST) + b":\n\n" + event(SECOND) + b'event: end\ndata: {"why": "this Server stops"}\n\n' + event(FIRST)[:-1]
        for size in (1, 2, 3, len(said)):
            events = sse()
            found = [one for start in range(0, len(said), size) for one in events.feed(said[start : start + size])]
            self.assertEqual(found, [FIRST, SECOND])
            self.assertEqual(events.feed(b"\n"), [FIRST])

    def test_what_no_server_says_is_not_taken_for_an_event(self) -> None:
        for said in (
            b"data: {\n\n",
            b"data: []\n\n",
            b'data: {"aggregates": []}\n\n',
            b"data: \xff\n\n",
            b"data: " + b"[" * 100_000 + b"\n\n",
        ):
            self.assertRaises(NotTaba, sse().feed, said)

    def test_an_event_has_a_bound(self) -> None:
        self.patch(listening, "MAX_EVENT_BYTES", 20)
        self.assertEqual(sse().feed(b"data: " + b"0" * 14), [])
        self.assertRaises(NotTaba, sse().feed, b"data: " + b"0" * 15)


class WhenAgain(SynchronousTestCase):
    def test_who_was_never_heard_is_not_asked_again(self) -> None:
        self.assertIsNone(listening.Again(Random(1), 60.0).pause(0.0))

    def test_pauses_double_to_a_bound_and_patience_ends_with_its_last_moment(self) -> None:
        again = listening.Again(Random(1), 60.0)
        again.heard(40.0)
        now, pauses = 100.0, []
        while (pause := again.pause(now)) is not None:
            pauses.append(pause)
            now += pause
        self.assertTrue(160.0 <= now < 160.0 + listening.LEAST_PAUSE, now)
        for number, pause in enumerate(pauses[:-1]):
            most = min(listening.MOST_PAUSE, listening.FIRST_PAUSE * 2**number)
            self.assertTrue(most / 2 <= pause <= most, pauses)
        again.heard(now)
        self.assertGreater(again.pause(now + listening.STEADY_SECONDS - 0.1) or 0.0, listening.FIRST_PAUSE)
        again.heard(now)
        self.assertLessEqual(again.pause(now + listening.STEADY_SECONDS) or 60.0, listening.FIRST_PAUSE)

    def test_who_ends_each_connection_after_one_event_is_heard_once_a_second_at_the_most_and_ever_less_often(self) -> None:
        for seed in range(20):
            again, now, times = listening.Again(Random(seed), 60.0), 0.0, []
            for _ in range(10):
                times.append(now)
                again.heard(now)
                now += again.pause(now) or 0.0
            between = [after - before for before, after in pairwise(times)]
            self.assertGreaterEqual(min(between), 1.0, seed)
            self.assertGreaterEqual(min(between[4:]), listening.MOST_PAUSE / 2, seed)
        short = listening.Again(Random(1), 0.5)
        short.heard(0.0)
        self.assertEqual(short.pause(0.0), 1.0)
        self.assertIsNone(short.pause(1.0))


class Breaks(TestCase):
    timeout = PATIENCE_SECONDS

    def setUp(self) -> None:
        self.patch(listening, "FIRST_PAUSE", 0.001)
        self.patch(listening, "LEAST_PAUSE", 0.0)

    def stranger(self, *answers: bytes) -> str:
        stranger = Stranger(*answers)
        self.addCleanup(stranger.stop)
        return stranger.url

    async def both(self, *answers: bytes, patience: float = 60.0) -> Any:
        """What both variants hear until they end, and the error with which they do."""

        def plain(url: str) -> Any:
            found: list[Any] = []
            try:
                for one in Query(url).stream(name="t", patience=patience):
                    found.append(one)
            except Exception as error:
                return found, type(error), str(error).replace(url, "")
            return found

        async def other(url: str) -> Any:
            found: list[Any] = []
            try:
                async for one in AsyncQuery(url).stream(name="t", patience=patience):
                    found.append(one)
            except Exception as error:
                return found, type(error), str(error).replace(url, "")
            return found

        heard = await deferToThread(plain, self.stranger(*answers))
        self.assertEqual(heard, await other(self.stranger(*answers)))
        return heard

    async def test_a_connection_that_breaks_is_made_anew_and_one_that_is_refused_too(self) -> None:
        refused = b'HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n{"error": "bad_request", "detail": "no"}'
        cut = HEAD + chunk(event(FIRST)) + chunk(event(SECOND)[:-5])
        ended = HEAD + chunk(event(SECOND)) + b"0\r\n\r\n"
        heard, error, sentence = await self.both(cut, FULL, b"", ended, cut[: len(HEAD)], ended, refused)
        self.assertEqual((heard, error, sentence), ([FIRST, SECOND, SECOND], BadRequest, "the Server at  refuses: no"))

    async def test_who_does_not_come_back_is_given_up_with_what_was_wrong(self) -> None:
        ended = HEAD + chunk(event(FIRST)) + b"0\r\n\r\n"
        heard, error, sentence = await self.both(ended, *[FULL] * 3, patience=0.0)
        self.assertEqual((heard, error), ([FIRST], ServerUnavailable))
        self.assertIn("says nothing any more", sentence)

    async def test_who_takes_a_connection_and_says_nothing_is_given_up_within_the_timeout(self) -> None:
        refusal = FULL.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000\r\n\r\n")
        waits: list[Any] = []
        settimeout = socket.socket.settimeout

        def seen(of: socket.socket, seconds: Any) -> None:
            waits.append(seconds)
            settimeout(of, 0.01 if seconds == 77.0 else seconds)

        self.patch(socket.socket, "settimeout", seen)
        self.patch(listening, "SILENCE_SECONDS", 77.0)
        for answer, heard, timeout, last in (
            (b"", [], 0.05, 0.05),
            (HEAD[:20], [], 0.05, 0.05),
            (refusal, [], 0.05, 0.05),
            (HEAD + chunk(event(FIRST)), [FIRST], 25.0, 77.0),
        ):
            stranger = Stranger(answer, close=False)
            self.addCleanup(stranger.stop)
            waits.clear()
            found: list[Any] = []

            def listen(url: str = stranger.url, timeout: float = timeout, found: list[Any] = found) -> None:
                for one in Query(url, timeout=timeout).stream(name="t", patience=0.0):
                    found.append(one)

            with self.assertRaises(ServerUnavailable) as raised:
                await deferToThread(listen)
            self.assertEqual((found, str(raised.exception)), (heard, str(questions.too_slow(stranger.url, "Server", last))), answer)
            self.assertEqual((waits[0], max(waits)), (timeout, last))

    async def test_who_is_not_there_at_first_is_said_at_once(self) -> None:
        heard, error, sentence = await self.both(FULL)
        self.assertEqual((heard, error), ([], ServerUnavailable))
        self.assertIn("later", sentence)

    async def test_an_answer_that_is_no_stream_is_none(self) -> None:
        page = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        self.assertEqual((await self.both(page))[:2], ([], NotTaba))
        self.assertEqual((await self.both(HEAD + chunk(event([]))))[:2], ([], NotTaba))
