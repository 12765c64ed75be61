from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import time
import warnings
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import treq
from cryptography.hazmat.primitives import serialization
from twisted.internet import reactor, task, threads
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent

from taba import connections
from taba.bounds import DAY
from taba.broadcast import Broadcast, Said
from taba.calls import Answer, Call
from taba.descriptors import Descriptors
from taba.errors import ConfigurationError
from taba.guard import Guard
from taba.listening import Front, listen_at
from taba.options import listen
from taba.routes import Route
from taba.tls import EXPIRY_DAYS, ListeningTls, SendingTls, TlsFiles, tls_sentence
from taba.tokens import ANY, OPEN
from taba.web import Api
from tests.certificates import Authority, Pair
from tests.needs import needs_localhost
from tests.patience import PATIENCE_SECONDS

LOCAL = listen("tcp:0:interface=127.0.0.1")


async def fine(call: Call) -> Answer:
    return Answer("fine")


def _ends(connection: ssl.SSLSocket) -> bool:
    """Whether it is closed by its peer, with whatever words."""
    try:
        return connection.recv(1) == b""
    except OSError as error:
        return not isinstance(error, TimeoutError)


class Cases:
    """What both kinds of tests here begin with: an authority, and a certificate for localhost."""

    def prepare(self, directory: str) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        self.authority = Authority(self.directory)
        self.own = self.authority.sign("own", "localhost", "127.0.0.1")


class Files(Cases, SynchronousTestCase):
    def setUp(self) -> None:
        self.prepare(self.mktemp())

    def refusal(self, certificate: Path, key: Path, authorities: Path | None = None) -> str:
        return str(self.assertRaises(ConfigurationError, ListeningTls, TlsFiles(certificate, key, authorities)))

    def test_files_that_cannot_serve_are_named_with_what_they_take(self) -> None:
        rubbish, other = self.directory / "rubbish", self.authority.sign("other")
        rubbish.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n")
        rubbish.chmod(0o600)
        own = self.own
        self.assertRegex(self.refusal(Path("/nowhere"), own.key), "^--tls-cert: '/nowhere': takes a file that can be read: no such")
        self.assertRegex(self.refusal(rubbish, own.key), "^--tls-cert: .*rubbish': takes a file with certificates")
        self.assertRegex(self.refusal(own.key, own.key), "^--tls-cert: .*takes a file with certificates")
        self.assertRegex(self.refusal(own.certificate, rubbish), "^--tls-key: .*rubbish': takes a file with a private key")
        self.assertRegex(self.refusal(own.certificate, other.key), "^--tls-key: .*takes the key of the certificate in .*own.pem")
        self.assertRegex(self.refusal(own.certificate, own.key, rubbish), "^--tls-ca: .*rubbish': takes a file with certificates")
        own.key.chmod(0o644)
        self.assertRegex(self.refusal(own.certificate, own.key), "^--tls-key: .*chmod 600")

    def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(self) -> None:
        key = serialization.load_pem_private_key(self.own.key.read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"secret")
        self.own.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
        self.assertIn("without a passphrase", self.refusal(*self.own))

    def test_one_file_may_have_both_certificate_and_key(self) -> None:
        both = self.directory / "both"
        both.touch(0o600)
        both.write_bytes(self.own.certificate.read_bytes() + self.own.key.read_bytes())
        self.assertEqual(ListeningTls(TlsFiles(both, both)).problems(time.time()), [])

    def test_a_certificate_near_its_end_is_a_problem(self) -> None:
        tls = ListeningTls(TlsFiles(*self.authority.sign("soon", days=EXPIRY_DAYS + 5)))
        self.assertEqual(tls.problems(time.time()), [])
        self.assertRegex(tls.problems(time.time() + 6 * DAY)[0], "soon.pem ends in 13 days: put a new one there")
        self.assertRegex(tls.problems(time.time() + 30 * DAY)[0], "is past its end")

    def test_a_reload_that_fails_leaves_what_was_there(self) -> None:
        tls, trust = ListeningTls(TlsFiles(*self.own)), SendingTls(self.authority.file, TlsFiles(*self.own))
        expires = tls.expires
        self.own.certificate.write_text("gone")
        self.assertRaises(ConfigurationError, tls.reload)
        self.assertRaises(ConfigurationError, trust.reload)
        self.assertEqual(tls.expires, expires)
        self.assertTrue(trust.creatorForNetloc(b"localhost", 1))

    def test_a_certificate_that_is_past_its_end_replaces_none_that_is_not(self) -> None:
        fine, past = self.authority.sign("fine"), self.authority.sign("past", days=-1)
        tls, trust = ListeningTls(TlsFiles(*self.own)), SendingTls(self.authority.file, TlsFiles(*self.own))
        expires = tls.expires
        for path, new in zip(self.own, past, strict=True):
            shutil.copy(new, path)
        for part in (tls, trust):
            self.assertRegex(
                str(self.assertRaises(ConfigurationError, part.reload)), "--tls-cert: .*takes a certificate that is not past its end"
            )
        self.assertEqual((tls.expires, tls.problems(time.time())), (expires, []))
        started = ListeningTls(TlsFiles(*self.own))  # there is nothing better; who looks is told
        started.reload()
        self.assertRegex(started.problems(time.time())[0], "is past its end")
        for path, new in zip(self.own, fine, strict=True):
            shutil.copy(new, path)
        for listening in (tls, started):
            listening.reload()
            self.assertEqual(listening.problems(time.time()), [])

    def test_nor_does_one_that_begins_later_and_who_has_nothing_better_says_so(self) -> None:
        tls, trust = ListeningTls(TlsFiles(*self.own)), SendingTls(self.authority.file, TlsFiles(*self.own))
        for path, new in zip(self.own, self.authority.sign("later", begins=3.2), strict=True):
            shutil.copy(new, path)
        for part in (tls, trust):
            said = str(self.assertRaises(ConfigurationError, part.reload))
            self.assertRegex(said, "--tls-cert: .*takes a certificate that has begun, which this one does in 3 days")
        self.assertEqual(tls.problems(time.time()), [])
        started = ListeningTls(TlsFiles(*self.own))
        self.assertRegex(started.problems(time.time())[0], "begins in 3 days, and nobody takes it before: put one there that has begun")
        self.assertRegex(started.problems(time.time() + 3 * DAY)[0], "begins in 5 hours")
        self.assertEqual(started.problems(time.time() + 4 * DAY), [])

    def test_the_end_of_what_stands_between_and_of_the_last_authority_is_said_too(self) -> None:
        between = Authority(self.directory, "between", days=EXPIRY_DAYS - 4)
        with self.own.certificate.open("ab") as file:
            file.write(between.file.read_bytes())
        self.assertRegex(ListeningTls(TlsFiles(*self.own)).problems(time.time())[0], "one of the chain in .*own.pem ends in 10 days")
        own = self.authority.sign("fine")
        [said] = ListeningTls(TlsFiles(*own, between.file)).problems(time.time() + 11 * DAY)
        self.assertIn("the last of the authorities in", said)
        self.assertIn("between.pem is past its end: put a new one there", said)
        with between.file.open("ab") as file:  # one of two is another's end
            file.write(self.authority.file.read_bytes())
        self.assertEqual(ListeningTls(TlsFiles(*own, between.file)).problems(time.time() + 11 * DAY), [])


class Handshakes(Cases, TestCase):
    """A real listener with TLS on loopback, asked by what an Agent asks with and by Python's own ssl."""

    def setUp(self) -> None:
        self.prepare(self.mktemp())
        self.patch(connections, "LINGER_SECONDS", 0.05)

    async def renew(self, call: Call) -> Answer:
        return Answer(cast(Guard, self.site.guard).reload())

    async def serve(self, pair: Pair, authorities: Path | None = None) -> ListeningTls:
        tls = ListeningTls(TlsFiles(*pair, authorities))
        guard = Guard(None, tls, LOCAL, time.monotonic)
        self.said = Broadcast()
        routes = [
            Route("GET", "/fine", fine, "", ANY),
            Route("GET", "/healthz", fine, "", OPEN),
            Route("GET", "/hear", self.hear, "", OPEN),
            Route("GET", "/renew", self.renew, "", ANY),
        ]
        self.site = connections.make_site(Api(routes, guard))
        port = await listen_at(Front(LOCAL, guard, tls), self.site, reactor, Descriptors("Server", time.monotonic))
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port
        return tls

    async def hear(self, call: Call) -> Answer:
        return Answer(self.said, content_type="text/plain")

    async def ask(self, host: str = "localhost", shown: Pair | None = None, trusted: Path | None = None, path: str = "fine") -> Any:
        """Status and body, or what stood in the way."""
        trust: Any = SendingTls(trusted or self.authority.file, TlsFiles(*shown) if shown else None)
        try:
            response = await Agent(reactor, trust).request(b"GET", f"https://{host}:{self.port}/{path}".encode())
            return response.code, await treq.content(response)
        except Exception as error:
            return tls_sentence(error.reasons[0].value) if hasattr(error, "reasons") else tls_sentence(error)

    async def test_a_peer_is_asked_when_authority_and_name_are_right(self) -> None:
        needs_localhost()
        await self.serve(self.own)
        for host in ("localhost", "127.0.0.1"):
            self.assertEqual(await self.ask(host), (200, b'"fine"\n'))

    async def test_what_many_hear_comes_whole_and_in_order_under_tls_with_another_request_behind_it(self) -> None:
        await self.serve(self.own)

        def hear() -> tuple[list[str], int]:
            trust = ssl.create_default_context(cafile=self.authority.file)
            address = ("127.0.0.1", self.port)
            with trust.wrap_socket(socket.create_connection(address, PATIENCE_SECONDS), server_hostname="127.0.0.1") as peer:
                peer.sendall(b"GET /hear HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                raw = b"".join(iter(lambda: peer.recv(65536), b""))
            answer = http.client.HTTPResponse(cast(socket.socket, SimpleNamespace(makefile=lambda mode: BytesIO(raw))))
            answer.begin()
            return answer.read().decode().split(), raw.count(b"HTTP/1.1 ")  # listeners ask once: what is behind is not answered

        async def breathe() -> None:
            await task.deferLater(reactor, 0.0, lambda: None)

        heard = threads.deferToThread(hear)
        while not self.said.listeners and not heard.called:
            await breathe()
        for number in range(50):
            await self.said.say(Said(f"{number}" + "x" * 2000 + "\n"), breathe)
        self.said.end(Said("end\n"))
        self.assertEqual(await heard, ([*(f"{number}" + "x" * 2000 for number in range(50)), "end"], 1))

    async def test_a_certificate_of_another_authority_or_for_another_name_ends_it_with_the_cure(self) -> None:
        needs_localhost()
        await self.serve(self.own)
        self.assertIn("--cacert", await self.ask(trusted=Authority(self.directory, "strange").file))
        await self.serve(self.authority.sign("past", "localhost", days=-1))
        self.assertIn("renewed if it is past its end", await self.ask())
        await self.serve(self.authority.sign("elsewhere", "elsewhere.example"))
        self.assertIn("for another name", await self.ask())
        self.assertIn("for another name", await self.ask("127.0.0.1"))

    async def test_without_a_client_certificate_only_what_is_open_is_answered(self) -> None:
        needs_localhost()
        await self.serve(self.own, self.authority.file)
        status, body = await self.ask()
        self.assertEqual(status, 403)
        self.assertIn(b"no_certificate", body)
        self.assertEqual((await self.ask(path="healthz"))[0], 200)
        self.assertEqual((await self.ask(shown=self.authority.sign("agent")))[0], 200)

    async def test_a_client_certificate_of_another_authority_is_refused(self) -> None:
        await self.serve(self.own, self.authority.file)
        stranger = Authority(self.directory, "strange").sign("stranger")
        self.assertNotIsInstance(await self.ask(shown=stranger, path="healthz"), tuple)

    async def test_new_connections_get_the_certificate_that_was_reloaded(self) -> None:
        needs_localhost()
        tls = await self.serve(self.own)
        fresh = Authority(self.directory, "fresh")
        for path, new in zip(self.own, fresh.sign("new", "localhost"), strict=True):
            shutil.copy(new, path)
        self.assertEqual((await self.ask())[0], 200)
        tls.reload()
        self.assertEqual((await self.ask(trusted=fresh.file))[0], 200)
        self.assertIn("--cacert", await self.ask())

    async def test_what_was_shown_before_is_while_the_files_have_one_past_its_end(self) -> None:
        needs_localhost()
        tls = await self.serve(self.own)
        for path, new in zip(self.own, self.authority.sign("past", "localhost", days=-1), strict=True):
            shutil.copy(new, path)
        self.assertRaises(ConfigurationError, tls.reload)
        self.assertEqual((await self.ask())[0], 200)

    async def test_connections_whose_certificate_was_signed_by_authorities_of_before_are_cut_and_answered_no_more(self) -> None:
        needs_localhost()
        ours, theirs = self.directory / "ours.pem", Authority(self.directory, "theirs")
        ours.write_bytes(self.authority.file.read_bytes() + theirs.file.read_bytes())
        tls = await self.serve(self.own, ours)
        context = ssl.create_default_context(cafile=str(self.authority.file))
        shown = theirs.sign("agent")
        context.load_cert_chain(shown.certificate, shown.key)

        def ask(connection: http.client.HTTPSConnection) -> int:
            connection.request("GET", "/fine")
            answer = connection.getresponse()
            answer.read()
            return answer.status

        def kept() -> http.client.HTTPSConnection:
            connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=PATIENCE_SECONDS)
            self.addCleanup(connection.close)
            return connection

        idle, busy = kept(), kept()
        for connection in (idle, busy):
            for _ in range(2):
                self.assertEqual(await threads.deferToThread(ask, connection), 200)
        guard = cast(Guard, self.site.guard)
        self.assertEqual(guard.reload(), [])  # the same ones
        for connection in (idle, busy):
            self.assertEqual(await threads.deferToThread(ask, connection), 200)
        shutil.copy(self.authority.file, ours)
        self.patch(self.site, "known", set())  # as if nobody were idle then
        self.assertEqual(guard.reload(), [])
        self.assertEqual(tls.changes, 1)
        self.assertEqual(await threads.deferToThread(ask, busy), 403)
        ours.write_bytes(self.authority.file.read_bytes() + theirs.file.read_bytes())
        again = kept()
        self.assertEqual(guard.reload(), [])
        self.assertEqual(await threads.deferToThread(ask, again), 200)
        ours.write_bytes(self.authority.file.read_bytes())
        self.assertEqual(guard.reload(), [])
        sock = cast(Any, again).sock
        self.assertEqual(await threads.deferToThread(lambda: _ends(sock)), True)

    async def test_a_connection_that_is_answered_while_authorities_change_is_closed_then_and_who_comes_again_is_answered(self) -> None:
        needs_localhost()
        ours, theirs = self.directory / "ours.pem", Authority(self.directory, "theirs")
        shutil.copy(self.authority.file, ours)
        await self.serve(self.own, ours)
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.load_cert_chain(self.own.certificate, self.own.key)

        def ask(connection: http.client.HTTPSConnection, path: str) -> tuple[int, str | None]:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("connection")

        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=PATIENCE_SECONDS)
        self.addCleanup(connection.close)
        with ours.open("ab") as file:
            file.write(theirs.file.read_bytes())
        asked = [await threads.deferToThread(ask, connection, path) for path in ("/fine", "/renew", "/fine", "/fine")]
        self.assertEqual(asked, [(200, None), (200, "close"), (200, None), (200, None)])
        self.patch(self.site, "known", set())  # one that was not cut
        shutil.copy(self.authority.file, ours)
        cast(Guard, self.site.guard).reload()
        asked = [await threads.deferToThread(ask, connection, "/fine") for _ in range(3)]
        self.assertEqual(asked, [(403, "close"), (200, None), (200, None)])

    async def test_neither_old_protocols_nor_silence_nor_plain_http_hold_a_place(self) -> None:
        await self.serve(self.own)

        def handshake(version: ssl.TLSVersion) -> str:
            context = ssl.create_default_context(cafile=str(self.authority.file))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is what is tried
                context.minimum_version = context.maximum_version = version
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
            with connection, context.wrap_socket(connection, server_hostname="localhost") as wrapped:
                return wrapped.version() or ""

        self.assertEqual(await threads.deferToThread(handshake, ssl.TLSVersion.TLSv1_3), "TLSv1.3")
        with self.assertRaises((ssl.SSLError, OSError)):
            await threads.deferToThread(handshake, ssl.TLSVersion.TLSv1_1)
        self.patch(connections, "FIRST_SECONDS", 0.3)  # from here on: who is to be served has all the time that he needs

        def silent(said: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS) as connection:
                connection.sendall(said)
                try:
                    return connection.recv(100)
                except ConnectionResetError:
                    return b""

        for said in (b"", b"GET /fine HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            self.assertNotIn(b"HTTP", await threads.deferToThread(silent, said))
        while self.site.connections:
            await task.deferLater(reactor, 0.01)
