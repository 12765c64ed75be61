"""The documentation is true: its examples run, its tables are complete, its links lead somewhere."""

from __future__ import annotations

import re
import sys
from inspect import signature
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from taba import ring
from taba.agent.http import Routes as AgentRoutes
from taba.agent.options import Options as AgentOptions
from taba.cli.commands import command
from taba.options import variable_of
from taba.query import Query
from taba.server.options import ServerOptions
from taba.server.service import Server
from tests.documents import blocks
from tests.needs import needs_program
from tests.processes import free_port
from tests.server.running import options_of
from tests.services import ROOT, Services

DOCUMENTS = sorted(str(path.relative_to(ROOT)) for place in (ROOT, ROOT / "docs", ROOT / "deploy") for path in place.glob("*.md"))
ELSEWHERE = {  # pages whose examples are run beside what they are about
    "docs/frameworks.md": "tests/frameworks/test_examples.py",
    "docs/handlers.md": "tests/handlers/test_past.py",
    "docs/shard.md": "tests/shard/test_documentation.py",
    "docs/writing-handlers.md": "tests/handlers/test_writing.py",
}
FOR_READING = {"text", "console", "toml"}  # what is no program
REFERENCE, OPERATIONS = ROOT / "docs" / "reference.md", ROOT / "docs" / "operations.md"


@pytest.mark.real
@pytest.mark.takes(seconds=30)
class Examples(SynchronousTestCase):
    def run_document(self, name: str, *agent: str, **environ: str) -> None:
        needs_program("curl")
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent(*agent)
        commands = services.directory / "bin"
        commands.mkdir()
        for program, module in (("taba", "-m taba.cli.main"), ("taba-run", "-m taba.compat.run"), ("python3", "")):
            (commands / program).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
            (commands / program).chmod(0o755)
        done = services.run(
            "-m", "tests.documents", str(ROOT / name), timeout=180, PATH=f"{commands}:{services.environ['PATH']}", **environ
        )
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_readme_runs(self) -> None:
        self.run_document("README.md")

    def test_the_guide_runs(self) -> None:
        self.run_document("docs/guide.md")

    def test_the_reference_runs(self) -> None:
        self.run_document("docs/reference.md")

    def test_operations_run(self) -> None:
        self.run_document("docs/operations.md")

    def test_prometheus_client_runs(self) -> None:
        self.run_document("docs/prometheus-client.md")

    def test_statsd_runs(self) -> None:
        port = str(free_port())
        self.run_document("docs/statsd.md", "--statsd", f"udp:{port}", STATSD_PORT=port)

    def test_prometheus_and_grafana_run(self) -> None:
        self.run_document("docs/prometheus.md")


class Completeness(SynchronousTestCase):
    def test_the_examples_of_each_page_are_run(self) -> None:
        here = set(re.findall(r'run_document\("([^"]+)"', Path(__file__).read_text()))
        for name in DOCUMENTS:
            languages = {block.language for block in blocks((ROOT / name).read_text())} - FOR_READING
            self.assertLessEqual(languages, {"python", "sh"}, f"{name}: a block says whether it is run")
            if languages:
                self.assertEqual((name in here, name in ELSEWHERE), (name not in ELSEWHERE, name not in here), f"{name} is run by no test")
        for name, test in ELSEWHERE.items():
            text = (ROOT / test).read_text()
            self.assertTrue("blocks(" in text and Path(name).name in text, test)

    def check(self, path: Path, words: list[str]) -> None:
        text = path.read_text()
        self.assertEqual([word for word in words if f"`{word}" not in text], [], path.name)

    def test_every_option_and_its_variable_is_in_the_reference(self) -> None:
        for options in (ServerOptions, AgentOptions):
            self.check(REFERENCE, ["--" + option.name for option in options.definitions])
            self.check(REFERENCE, [variable_of(options.prefix, option) for option in options.definitions])

    def test_every_command_and_question_is_in_the_reference(self) -> None:
        self.check(REFERENCE, [f"taba {name}" for name in command.commands])
        text = REFERENCE.read_text()
        questions = [name for name in vars(Query) if not name.startswith("_") and name != "ask"]
        self.assertEqual([name for name in questions if f"{name}(" not in text], [])

    def test_every_route_and_its_parameters_are_in_the_reference(self) -> None:
        server = Server(options_of(store="redis://127.0.0.1:1"), reactor)
        nothing = [cast(Any, None)] * (len(signature(AgentRoutes).parameters))
        agent = AgentRoutes(*nothing)
        text = REFERENCE.read_text()
        for route in (*server.site.resource.table.routes, *agent.api(None).table.routes):
            self.assertIn(f"{route.method} {route.path}", text)
            for parameter in route.parameters:
                self.assertIn(f"{parameter.name}=", text, route.path)

    def test_every_reason_is_in_operations(self) -> None:
        dead = set()
        for source in (ROOT / "taba" / "server").rglob("*.py"):
            dead |= set(
                re.findall(r'^(?:UNKNOWN|TYPE|WRONG|BAD|HANDLER|NEWER|STATE|TOO)_[A-Z_]+ = "([a-z_]+)"', source.read_text(), re.MULTILINE)
            )
        self.assertIn("unknown_type", dead)
        self.check(OPERATIONS, [*ring.DROP_REASONS, *sorted(dead)])

    def test_links_between_documents_lead_somewhere(self) -> None:
        for name in DOCUMENTS:
            path = ROOT / name
            if path.exists():
                for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
                    self.assertTrue((path.parent / target).exists(), f"{name}: {target}")


class SpeaksForItself(SynchronousTestCase):
    def test_no_file_refers_to_papers_that_the_repository_lacks(self) -> None:
        absent = re.compile(r"\b(?:design|section|issue|rule|plan) ?(?:\.md|#?\d+(?:\.\d+)?)\b", re.IGNORECASE)
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "newsfragments").glob("*.md")]:
            self.assertEqual(absent.findall(path.read_text()), [], path)
        for folder in ("taba", "tests", "benchmarks", "demo", "simulation", "twisted", "deploy", "docs"):
            for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.[ch]")]:
                self.assertEqual(absent.findall(path.read_text()), [], path)
