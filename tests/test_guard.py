from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import connections, guard, tries
from taba.calls import Answer, Call
from taba.connections import BoundedChannel
from taba.errors import ConfigurationError
from taba.guard import Guard, Refused, TokenFile
from taba.options import listen
from taba.tokens import ADMIN, ANY, EVERYTHING, OPEN, READ, WRITE, Grant, line_of, new_token
from taba.web import Api
from tests.sites import ROUTES, Served, route

LOCAL = listen("tcp:1:interface=127.0.0.1")


WAIT = 0.01


class Certificates:
    """What a listener's TLS tells a guard."""

    asks_for_certificates = True
    changes = 0
    broken: ConfigurationError | None = None

    def reload(self) -> None:
        if self.broken:
            raise self.broken

    def problems(self, unix_now: float) -> list[str]:
        return ["ends soon"]


class Files:
    """A file of tokens, one of each kind."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.tokens = {kind: new_token(kind) for kind in (READ, WRITE, ADMIN)}
        self.write(*self.tokens.values())
        self.file = TokenFile(self.path)

    def write(self, *tokens: str) -> None:
        self.path.touch(0o600)
        self.path.write_text("".join(f"{line_of(token)}\n" for token in tokens))


class Guards(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = Files(self.mktemp())
        self.clock = Clock()
        self.guard = Guard(self.files.file, None, LOCAL, self.clock.seconds)

    def refusal(self, *authorizations: str, certificate: bool = False) -> tuple[int, str]:
        error = self.assertRaises(Refused, self.guard.identify, authorizations, certificate, "10.0.0.1")
        self.assertGreater(error.wait_seconds, 0)
        return error.status, error.error

    def test_a_known_token_is_granted_what_its_line_says(self) -> None:
        for kind, token in self.files.tokens.items():
            for scheme in ("Bearer ", "bearer   "):
                self.assertEqual(self.guard.identify([scheme + token], False, ""), Grant(kind))

    def test_who_posts_is_known_by_a_part_of_the_tokens_hash_and_by_no_token_where_none_is_asked_for(self) -> None:
        one, other = (self.guard.name_of([f"{scheme} {self.files.tokens[kind]}"]) for scheme, kind in (("Bearer", READ), ("Bearer", WRITE)))
        self.assertRegex(str(one), "^token [0-9a-f]{16}$")
        self.assertNotEqual(one, other)
        self.assertEqual(self.guard.name_of([f"bearer   {self.files.tokens[READ]}"]), one)
        self.assertIsNone(Guard(None, None, LOCAL, self.clock.seconds).name_of(["Bearer invented"]))

    def test_whoever_shows_no_token_or_a_wrong_one_is_refused_and_counted(self) -> None:
        for offered in [(), ("",), ("Basic abc",), ("Bearer",), ("Bearer a b",), (f"Bearer {self.files.tokens[READ]}",) * 2]:
            self.assertEqual(self.refusal(*offered), (401, "no_token"))
        self.assertEqual(self.guard.problems(0), [])
        self.assertEqual(self.refusal("Bearer taba_read_x"), (401, "unknown_token"))
        self.assertEqual(self.refusal(f"Bearer {new_token(ADMIN)}"), (401, "unknown_token"))
        self.assertEqual(
            self.guard.describe(),
            {"tokens": 3, "tls": False, "refused": 8, "unknown_tokens": 2, "tried_from": 1, "tries_forgotten": 0},
        )

    def test_unknown_tokens_are_a_problem_for_a_while(self) -> None:
        self.refusal("Bearer x")
        [problem] = self.guard.problems(0)
        self.assertIn("1 try of a token that is not known, 1 from 10.0.0.1: ", problem)
        self.clock.advance(tries.RECENT_SECONDS)
        self.assertEqual(self.guard.problems(0), [])

    def test_a_route_of_another_kind_names_the_kind_it_takes(self) -> None:
        self.guard.admit(Grant(READ), READ)
        error = self.assertRaises(Refused, self.guard.admit, Grant(READ), WRITE)
        self.assertEqual((error.status, error.error, error.wait_seconds), (403, "other_token", 0))
        self.assertIn("takes a token for write; yours is for read", error.detail)
        self.assertIn('scope="write"', error.challenge or "")

    def test_tokens_are_replaced_without_a_gap_and_a_bad_file_changes_nothing(self) -> None:
        old, new = self.files.tokens[READ], new_token(READ)
        self.files.write(old, new)
        self.assertEqual(self.guard.reload(), [])
        for token in (old, new):
            self.guard.identify([f"Bearer {token}"], False, "")
        self.files.write(new)
        self.guard.reload()
        self.assertEqual(self.refusal(f"Bearer {old}"), (401, "unknown_token"))
        self.files.path.chmod(0o644)
        [problem] = self.guard.reload()
        self.assertRegex(problem, "^--tokens: .*chmod 600.*stays in force")
        self.assertIn(problem, self.guard.problems(0))
        self.guard.identify([f"Bearer {new}"], False, "")
        self.files.path.chmod(0o600)
        self.assertEqual(self.guard.reload(), [])

    def test_a_file_that_is_wrong_at_start_is_an_error_of_the_option(self) -> None:
        self.files.path.write_text("nonsense")
        error = self.assertRaises(ConfigurationError, TokenFile, self.files.path)
        self.assertEqual((error.option, error.value), ("--tokens", str(self.files.path)))

    def test_authorities_ask_for_a_certificate_beside_the_token(self) -> None:
        tls: Any = Certificates()
        self.guard = Guard(self.files.file, tls, LOCAL, self.clock.seconds)
        bearer = f"Bearer {self.files.tokens[READ]}"
        self.assertEqual(self.refusal(bearer), (403, "no_certificate"))
        self.guard.identify([bearer], True, "")
        self.assertEqual(Guard(None, tls, LOCAL, self.clock.seconds).identify([], True, ""), EVERYTHING)
        tls.broken = ConfigurationError("--tls-cert", "x", "takes")
        [problem] = self.guard.reload()
        self.assertEqual(self.guard.problems(0), [problem, "ends soon"])

    def test_without_tokens_and_certificates_nobody_is_a_stranger(self) -> None:
        free = Guard(None, None, LOCAL, self.clock.seconds)
        self.assertFalse(free.is_closed or free.needs_token(ADMIN))
        self.assertEqual((free.problems(0), free.reload()), ([], []))
        self.assertTrue(self.guard.needs_token(ANY))
        self.assertFalse(self.guard.needs_token(OPEN))

    def test_to_listen_for_all_without_tls_is_a_problem(self) -> None:
        [problem] = Guard(self.files.file, None, listen("tcp:80"), self.clock.seconds).problems(0)
        self.assertIn("'tcp:80' is reached from other hosts without TLS", problem)


async def whose(call: Call) -> Answer:
    return Answer(call.grant.kind)


class Guarded(Served):
    def setUp(self) -> None:
        self.files = Files(self.mktemp())
        self.guard = Guard(self.files.file, None, LOCAL, Clock().seconds)
        more = [
            route("GET", "/whose", whose, token=ANY),
        ]
        self.serve(Api([*ROUTES, *more], self.guard))
        self.patch(guard, "FAILED_SECONDS", WAIT)  # of no token
        self.patch(tries, "FAILED_SECONDS", WAIT)
        self.patch(connections, "LINGER_SECONDS", 0.05)

    async def status(self, method: str, path: str, kind: str, body: Any = None) -> int:
        return (await self.ask(method, path, body, Authorization=f"Bearer {self.files.tokens[kind]}"))[0]

    async def test_each_route_takes_its_kind_of_token(self) -> None:
        for method, path, may in [
            ("GET", "/echo", {READ, ADMIN}),
            ("HEAD", "/echo", {READ, ADMIN}),
            ("POST", "/echo", {WRITE, ADMIN}),
            ("GET", "/picky", {ADMIN}),  # it names no kind
            ("GET", "/whose", {READ, WRITE, ADMIN}),
        ]:
            for kind in self.files.tokens:
                expected = 200 if kind in may else 403
                self.assertEqual(await self.status(method, path, kind, b"x" if method == "POST" else None), expected, (method, path, kind))

    async def test_strangers_learn_nothing_but_what_is_open(self) -> None:
        for method, path in [("GET", "/echo"), ("GET", "/nowhere"), ("DELETE", "/echo"), ("GET", "/bug"), ("POST", "/json")]:
            status, content, answer = await self.ask(method, path, b"{}" if method == "POST" else None)
            self.assertEqual((status, content["error"]), (401, "no_token"), path)
            self.assertEqual(answer.getheader("www-authenticate"), 'Bearer realm="taba"')
        self.assertEqual((await self.ask("GET", "/teapot"))[0], 418)
        self.assertEqual(await self.status("GET", "/nowhere", READ), 404)

    async def test_the_body_of_a_stranger_is_not_read(self) -> None:
        head = b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
        answer = await self.say(head + b"\r\n")  # and nothing of the body
        self.assertIn(b" 401 ", answer.splitlines()[0])
        self.assertIn(b"www-authenticate: Bearer", answer)
        wrong = await self.say(head.replace(b"Content-Length: 900", b"Transfer-Encoding: chunked") + b"Authorization: Bearer x\r\n\r\n")
        self.assertIn(b'error="invalid_token"', wrong)
        self.assertEqual(set(json.loads(wrong.partition(b"\r\n\r\n")[2])), {"error", "detail"})

    async def test_a_stranger_waits_for_its_refusal_and_a_known_peer_for_nothing(self) -> None:
        pause = mock.Mock()
        build = self.site.buildProtocol

        def watched(address: Any) -> Any:
            channel: Any = build(address)
            pause.side_effect, channel.pause = channel.pause, pause
            return channel

        self.patch(self.site, "buildProtocol", watched)
        await self.status("GET", "/echo", READ)
        await self.status("GET", "/echo", WRITE)  # of another kind: known all the same
        pause.assert_not_called()
        await self.ask("GET", "/echo")
        await self.ask("GET", "/echo", Authorization="Bearer x")
        self.assertEqual(pause.call_args_list, [mock.call(WAIT)] * 2)

    async def test_each_further_try_of_an_address_waits_longer_whatever_is_asked_and_a_known_token_never(self) -> None:
        tried = [*range(tries.FREE_TRIES + 2)]
        waits = [await self.waited(["/echo", "/nowhere"][number % 2]) for number in tried]
        self.assertEqual(waits, [WAIT] * (tries.FREE_TRIES + 1) + [2 * WAIT])
        self.assertEqual(self.guard.tries.recent(), {"127.0.0.1": len(tried)})
        self.assertEqual(await self.waited("/echo", self.files.tokens[READ]), 0)

    async def waited(self, path: str, token: str = "none") -> float:
        """How long the answer was held back."""
        original = BoundedChannel.wait_refused
        with mock.patch.object(BoundedChannel, "wait_refused", autospec=True, side_effect=original) as waiting:
            await self.ask("GET", path, Authorization=f"Bearer {token}")
        waits: list[float] = [call.args[1] for call in waiting.call_args_list]
        return sum(waits)

    async def until_refused(self, count: int) -> None:
        await self.until(lambda: self.guard.refused == count)

    async def test_who_waits_to_be_refused_makes_room_for_who_comes(self) -> None:
        for module in (guard, tries):
            self.patch(module, "FAILED_SECONDS", 60.0)
        self.patch(connections, "MAX_HALL", 3)
        for number in range(3):
            self.connect().sendall(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await self.until_refused(number + 1)
        self.assertEqual(await self.status("GET", "/echo", READ), 200)
        self.assertEqual(self.site.refused["hall_full"], 1)
        await self.until(lambda: len(self.site.hall) == 2)

    async def test_only_a_known_peer_gets_a_place_that_lasts(self) -> None:
        stranger, known = self.connect(), self.connect()
        stranger.sendall(b"GET /teapot HTTP/1.1\r\nHost: localhost\r\n\r\n")
        known.sendall(b"GET /teapot HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.until(lambda: len(self.site.hall) == 2 and all(not channel.is_served for channel in self.site.hall))
        self.assertEqual(len(self.site.known), 0)
        bearer = self.files.tokens[READ].encode()
        known.sendall(b"GET /echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + bearer + b"\r\n\r\n")
        await self.until(lambda: len(self.site.known) == 1)
        self.assertEqual(len(self.site.hall), 1)

    async def test_nothing_of_a_token_is_said_or_logged(self) -> None:
        token = new_token(READ)
        status, content, _ = await self.ask("GET", "/echo", Authorization=f"Bearer {token}")
        self.assertEqual(status, 401)
        self.assertNotIn(token, json.dumps([content, self.guard.describe(), self.guard.problems(0)]))
