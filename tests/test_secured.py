"""A Server and an Agent with tokens and TLS as real processes: the Agent sends, the command and programs ask, strangers learn nothing."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet import defer, threads
from twisted.trial.unittest import SynchronousTestCase

from taba.calls import Answer, Call
from taba.query import AsyncQuery, Forbidden, Query, QueryError, ServerUnavailable
from taba.routes import Route
from taba.tokens import ADMIN, KINDS, OPEN, READ, WRITE, line_of, new_token
from taba.web import Api
from tests.certificates import Authority
from tests.patience import until
from tests.processes import Process, free_port, twistd, wait_for_port
from tests.services import START_SECONDS, Services
from tests.sites import Served


@pytest.mark.real
class Secured(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.directory = Path(tempfile.mkdtemp(dir=self.services.directory))
        self.authority = Authority(self.directory)
        self.own = self.authority.sign("own", "localhost", "127.0.0.1")
        self.agent_own = self.authority.sign("agent", "localhost", "127.0.0.1")
        self.tokens = {kind: new_token(kind) for kind in KINDS}
        self.file = self.write("tokens", *map(line_of, self.tokens.values()))

    def write(self, name: str, *lines: str) -> str:
        path = self.directory / name
        path.touch(0o600)
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    def start(self, name: str, program: str, port: int, *options: str) -> Process:
        child = Process(name, twistd(program, *options), self.services.directory, self.services.environ)
        self.services.children.append(child)
        wait_for_port(child, port, START_SECONDS)
        return child

    def wait_answered(self, url: str) -> None:
        until(lambda: self.query(READ, url).names() == [])

    def query(self, kind: str | None, url: str, **more: Any) -> Query:
        return Query(url, token=self.tokens.get(kind or ""), cacert=str(self.authority.file), **more)

    def test_all_of_it_works_with_tokens_and_certificates_and_nothing_without(self) -> None:
        port, agent_port = free_port(), free_port()
        url, agent_url = f"https://localhost:{port}", f"https://localhost:{agent_port}"
        tls = ("--tls-ca", str(self.authority.file), "--tokens", self.file)
        store = f"embedded:{self.services.directory / 'store'}"
        shown = ("--tls-cert", str(self.own.certificate), "--tls-key", str(self.own.key))
        server = self.start("server", "taba-server", port, "--listen", f"tcp:{port}", "--store", store, "--url", url, *tls, *shown)
        token = self.write("token", self.tokens[READ])  # not yet one for writing
        own = ("--tls-cert", str(self.agent_own.certificate), "--tls-key", str(self.agent_own.key))
        where = ("--agent", self.services.agent, "--server", url, "--listen", f"tcp:{agent_port}", "--spool", str(self.directory))
        agent = self.start("agent", "taba-agent", agent_port, *where, *tls, *own, "--token", token, "--cacert", str(self.authority.file))

        certificates = {"certificate": str(self.agent_own.certificate), "key": str(self.agent_own.key)}
        reader, nobody = self.query(READ, url, **certificates), self.query(None, url, **certificates)
        until(lambda: reader.names() == [])
        self.assertRaises(Forbidden, nobody.names)
        self.assertRaises(Forbidden, self.query(READ, url).names)  # without a certificate
        self.assertRaises(ServerUnavailable, Query(url, token=self.tokens[READ]).names)  # believing the system's authorities alone
        self.assertRaises(Forbidden, self.query(WRITE, url, **certificates).names)
        self.assertRaises(Forbidden, reader.delete_tabs, "x")
        self.assertEqual(self.query(ADMIN, url, **certificates).delete_tabs("x"), {"tabs": 0, "states": 0})
        self.assertEqual(reader.status()["problems"], [])

        # an Agent whose token is not for writing keeps everything and says so; with the right one it goes on by itself
        recorded = self.services.run("-c", "from taba import client; client.start('web/1'); client.counter('hits').inc(3)")
        self.assertEqual(recorded.returncode, 0, recorded.stderr)
        asking_agent = self.query(READ, agent_url, role="Agent", **certificates)
        problem = until(lambda: [one for one in asking_agent.status()["problems"] if "not for writing" in one])
        self.assertIn("nothing is lost", problem[0])
        self.write("token", self.tokens[WRITE])
        os.kill(agent.process.pid, signal.SIGHUP)
        until(lambda: reader.names() == ["hits"])
        until(lambda: asking_agent.status()["problems"] == [])

        # the command takes a file, and a token that was taken back is good no more
        options = (
            "--server",
            url,
            "--cacert",
            str(self.authority.file),
            "--tls-cert",
            certificates["certificate"],
            "--tls-key",
            certificates["key"],
        )
        reading = self.write("reading", self.tokens[READ])
        asked = self.services.taba("names", *options, "--token", reading)
        self.assertEqual((asked.returncode, asked.stdout), (0, "hits\n"), asked.stderr)
        asked = self.services.taba("names", *options, TABA_TOKEN=self.tokens[READ])
        self.assertEqual(asked.stdout, "hits\n", asked.stderr)
        refused = self.services.taba("names", *options)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, r"^taba: .*takes a token.*--token, or in TABA_TOKEN\n$")
        self.write("tokens", line_of(self.tokens[WRITE]))
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: _raises(reader.names, Forbidden))

    def test_workers_read_tokens_and_certificates_again_each_of_them(self) -> None:
        port = free_port()
        urls = [f"https://localhost:{port + number}" for number in range(2)]
        certificate, key = (self.directory / name for name in ("shown.pem", "shown.key"))
        certificate.write_bytes(self.own.certificate.read_bytes())
        key.touch(0o600)
        key.write_bytes(self.own.key.read_bytes())
        files = ("--tokens", self.file, "--tls-cert", str(certificate), "--tls-key", str(key))
        store = f"embedded:{self.services.directory / 'store'}"
        server = self.start(
            "server", "taba-server", port, "--listen", f"tcp:{port}", "--store", store, "--url", urls[0], "--workers", "2", *files
        )
        old, other = self.tokens[READ], self.authority.sign("other", "localhost", "127.0.0.1")
        for url in urls:
            self.wait_answered(url)
            self.assertRaises(Forbidden, self.query(None, url).names)
        self.tokens[READ] = new_token(READ)
        self.write("tokens", line_of(self.tokens[READ]))
        certificate.write_bytes(other.certificate.read_bytes())
        key.write_bytes(other.key.read_bytes())
        os.kill(server.process.pid, signal.SIGHUP)
        for url in urls:
            self.wait_answered(url)
            self.assertRaises(Forbidden, Query(url, token=old, cacert=str(self.authority.file)).names)
            self.assertEqual(self.shown(url), other.certificate.read_text())

    def shown(self, url: str) -> str:
        """The certificate that a listener shows."""
        host, _, port = url.removeprefix("https://").partition(":")
        return ssl.get_server_certificate((host, int(port)))


def _raises(function: Callable[[], Any], kind: type[Exception]) -> bool:
    try:
        function()
    except kind:
        return True
    return False


class Command(SynchronousTestCase):
    def test_a_new_token_comes_with_its_line(self) -> None:
        from click.testing import CliRunner

        from taba.cli.commands import command

        for options, kind in [((), READ), (("--read",), READ), (("--write",), WRITE), (("--admin",), ADMIN)]:
            with patch.object(sys, "stdout"):
                result = CliRunner().invoke(command, ["token", "new", *options])
            token, line = result.output.splitlines()
            self.assertTrue(token.startswith(f"taba_{kind}_"))
            self.assertEqual(line, line_of(token))

    def test_a_token_is_one_or_a_file_with_one_and_never_shown_where_it_is_neither(self) -> None:
        token = new_token(READ)
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text(token + "\n")
        for text in (token, str(path), f"@{path}"):
            self.assertEqual(Query("http://127.0.0.1:1", token=text)._headers, {"Authorization": f"Bearer {token}"})
        with patch.dict(os.environ, {"TABA_TOKEN": token}):
            self.assertEqual(Query("http://127.0.0.1:1")._headers, {"Authorization": f"Bearer {token}"})
        for bad in (token[:-1], "/nowhere"):
            error = self.assertRaises(ValueError, Query, "http://127.0.0.1:1", token=bad)
            self.assertNotIn(token[:-1], str(error))
            self.assertIn("--token: ", str(error))
        path.chmod(0o644)
        self.assertIn("chmod 600", str(self.assertRaises(ValueError, Query, "http://127.0.0.1:1", token=str(path))))

    def test_each_file_of_certificates_is_named_with_its_option(self) -> None:
        path = Path(self.mktemp())
        path.write_text("nonsense")
        own = Path(self.mktemp())
        own.mkdir()
        good = Authority(own).sign("own", "localhost")
        for options, said in (
            ({"cacert": "/nowhere"}, "^--cacert: '/nowhere': takes .*: No such file"),
            ({"cacert": str(path)}, f"^--cacert: '{path}': takes a file with certificates, as PEM"),
            ({"certificate": "/nowhere"}, "^--tls-cert: '/nowhere': takes .*: No such file"),
            ({"certificate": str(good.certificate), "key": "/nowhere"}, "^--tls-cert: .* and --tls-key '/nowhere': takes .*: No such file"),
            ({"certificate": str(good.certificate), "key": str(path)}, f"--tls-key '{path}': takes a file with a certificate"),
            ({"key": str(good.key)}, "^--tls-key: .* takes --tls-cert beside it"),
        ):
            for asker in (Query, AsyncQuery) if options.keys() == {"key"} else (Query,):
                error = self.assertRaises(ValueError, asker, "https://localhost:1", **options)
                self.assertRegex(str(error), said)


class Redirections(Served):
    async def test_a_redirection_is_not_followed_and_gets_no_token(self) -> None:
        asked: list[str] = []

        async def elsewhere(call: Call) -> Answer:
            asked.append("elsewhere")
            return Answer([])

        async def away(call: Call) -> Answer:
            return Answer([], 302, headers={"location": f"http://127.0.0.1:{self.port}/elsewhere"})

        self.serve(Api([Route("GET", "/v1/names", away, "", OPEN), Route("GET", "/elsewhere", elsewhere, "", OPEN)]))
        query = Query(f"http://127.0.0.1:{self.port}", token=new_token(READ))
        error = await self.assertFailure(threads.deferToThread(query.names), QueryError)
        self.assertIn("302", str(error))
        self.assertEqual(asked, [])
        asking = AsyncQuery(f"http://127.0.0.1:{self.port}", token=new_token(READ))
        await self.assertFailure(defer.ensureDeferred(asking.names()), QueryError)
        self.assertEqual(asked, [])
