"""docs/security.md: each threat names tests, and each test that it names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.options import Options
from taba.cli.commands import command
from taba.server.options import ServerOptions
from taba.tokens import READ, WRITE, line_of, new_token
from tests.certificates import Authority

ROOT = Path(__file__).parent.parent
_NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)(?:::([A-Za-z0-9_]+)::(test_[a-z0-9_]+))?`")


def threats(text: str) -> list[list[str]]:
    """The rows of the table of threats: who and what, what stands against it, where it is tried."""
    table = text.partition("\n## Threats\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return rows[2:]  # without its head


class Security(SynchronousTestCase):
    def setUp(self) -> None:
        self.rows = threats((ROOT / "docs/security.md").read_text("utf-8"))

    def test_each_threat_names_what_stands_against_it_and_tests_that_are_there(self) -> None:
        self.assertGreater(len(self.rows), 10)
        for row in self.rows:
            self.assertEqual(len(row), 3, row)
            found = _NAMED.findall(row[2])
            self.assertTrue(found and all(row) and all(name for _, _, name in found), row)
            self.assertEqual(re.sub(r"[,\s]", "", _NAMED.sub("", row[2])), "", f"{row[0]}: names something that is no test")
            for path, case, name in found:
                self.assertTrue((ROOT / path).is_file(), f"{row[0]}: there is no {path}")
                source = (ROOT / path).read_text("utf-8")
                self.assertIn("def test_", source, path)
                if name:
                    self.assertRegex(source, rf"class {case}\b[\s\S]*    (async )?def {name}\(", row[0])


class Commands(SynchronousTestCase):
    """The commands that docs/security.md shows, with files that are there."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.state = {"STATE_DIRECTORY": str(directory.absolute() / "state")}
        own = Authority(directory).sign("own", "taba.example.com")
        write = new_token(WRITE)
        secrets = {"tokens": line_of(write), "token": write, ".taba-token": new_token(READ)}
        for name, content in secrets.items():
            (directory / name).touch(0o600)
            (directory / name).write_text(content)
        for name, made in {"ca.pem": directory / "authority.pem", "agents-ca.pem": directory / "authority.pem"}.items():
            (directory / name).write_bytes(made.read_bytes())
        for name in ("server", "agent", ".taba"):
            (directory / f"{name}.pem").write_bytes(own.certificate.read_bytes())
            (directory / f"{name}.key").touch(0o600)
            (directory / f"{name}.key").write_bytes(own.key.read_bytes())
        block = (ROOT / "docs/security.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
        text = block.replace("\\\n", " ").replace("/etc/taba/", f"{directory.absolute()}/").replace("~/", f"{directory.absolute()}/")
        self.lines = [shlex.split(line, comments=True) for line in text.splitlines()]

    def of(self, *begin: str) -> list[list[str]]:
        return [line[len(begin) :] for line in self.lines if tuple(line[: len(begin)]) == begin]

    def test_server_and_agent_take_them(self) -> None:
        [server], [agent] = self.of("twistd", "-n", "taba-server"), self.of("twistd", "-n", "taba-agent")
        ServerOptions(self.state).parseOptions(server)
        Options(self.state).parseOptions(agent)

    def test_the_command_takes_them(self) -> None:
        found = self.of("taba")
        self.assertEqual(len(found), 3)
        assert isinstance(command, click.Group)
        for arguments in found:
            group: click.Group = command
            with click.Context(group, info_name="taba") as context:
                name, chosen, rest = group.resolve_command(context, arguments)
                assert chosen is not None
                if isinstance(chosen, click.Group):
                    name, chosen, rest = chosen.resolve_command(context, rest)
                    assert chosen is not None
                chosen.make_context(name, rest, parent=context)

    def test_where_a_server_asks_for_certificates_whoever_asks_it_has_one(self) -> None:
        asking = [line for line in self.lines if "--server" in line]
        self.assertEqual(sum("--tls-ca" in line for line in self.lines), 1)
        self.assertEqual(len(asking), 2)
        for line in asking:
            self.assertTrue({"--tls-cert", "--tls-key", "--cacert"} <= set(line), line)
