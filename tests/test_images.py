"""The images in deploy/: what is said of them holds, and their steps run. There is no daemon here that would build them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import SkipTest

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.options import Options as AgentOptions
from taba.server.options import ServerOptions
from tests.documents import blocks
from tests.patience import PATIENCE_SECONDS
from tests.processes import free_port

ROOT = Path(__file__).parents[1]
OPTIONS = {"taba-server": ServerOptions, "taba-agent": AgentOptions}
WITH_VALUE = {"--name", "--user", "--ipc", "--volume", "--network", "--cap-drop", "--security-opt", "--shm-size", "--env", "--group-add"}
ALONE = {"--read-only", "--detach", "--init", "--rm"}


class Step(NamedTuple):
    """One instruction of a Containerfile, in its stage."""

    stage: str
    word: str
    rest: str


def steps(text: str) -> list[Step]:
    """The instructions, in order."""
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                stage = rest.split()[-1]
            found.append(Step(stage, word, rest))
    return found


STEPS = steps((ROOT / "deploy" / "Containerfile").read_text("utf-8"))


def of(stage: str, word: str) -> list[str]:
    """What follows this word, in the steps of a stage."""
    return [step.rest for step in STEPS if step.stage == stage and step.word == word]


class Said(SynchronousTestCase):
    def test_what_runs_is_no_ones_user_and_has_no_tools_to_build_with(self) -> None:
        for stage in ("server", "agent"):
            self.assertEqual(of(stage, "FROM"), [f"run AS {stage}"])
            self.assertEqual(of(stage, "RUN") + of(stage, "USER") + of(stage, "COPY"), [])
        self.assertEqual(of("run", "USER"), ["8280:8280"])
        self.assertEqual(of("run", "COPY"), ["--from=made /taba /taba"])
        self.assertFalse([rest for rest in of("run", "RUN") if re.search(r"apt|pip|gcc", rest)])

    def test_whatever_others_wrote_is_installed_by_its_hash(self) -> None:
        installs = [rest for rest in of("made", "RUN") if "pip install" in rest or "pip wheel" in rest]
        self.assertEqual(len(installs), 4)
        for rest in installs:
            self.assertTrue("--require-hashes" in rest or "--no-deps" in rest, rest)
            self.assertTrue("pip wheel" not in rest or "--no-build-isolation" in rest, rest)

    def test_all_that_taba_is_made_of_is_copied(self) -> None:
        copied = {name for rest in of("made", "COPY") for name in rest.split()[:-1]}
        self.assertLessEqual({"setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "taba", "twisted"}, copied)
        self.assertEqual([name for name in copied if not (ROOT / name).exists()], [])

    def test_each_looks_after_itself_at_the_address_that_it_listens_on(self) -> None:
        for stage, program, port in (("server", "taba-server", 8280), ("agent", "taba-agent", 8279)):
            [health], [entry] = of(stage, "HEALTHCHECK"), of(stage, "ENTRYPOINT")
            self.assertIn(f"http://127.0.0.1:{port}/healthz", json.loads(health.partition("CMD ")[2])[-1])
            self.assertEqual(json.loads(entry)[-1], program)
            [listen] = [option.default for option in OPTIONS[program].definitions if option.name == "listen"]
            self.assertIn(f":{port}:", listen)

    def test_what_is_built_with_is_locked(self) -> None:
        locked = (ROOT / "deploy" / "building.txt").read_text("utf-8")
        self.assertRegex(locked, r"(?m)^setuptools==[\d.]+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+$")

    def test_each_command_of_the_page_is_one_that_docker_and_taba_take(self) -> None:
        seen = set()
        for block in blocks((ROOT / "docs" / "deploying.md").read_text("utf-8")):
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line)
                if words[:2] != ["docker", "run"]:
                    continue
                rest = words[2:]
                while rest[0].startswith("-"):
                    name, is_one, _ = rest[0].partition("=")
                    self.assertIn(name, ALONE if not is_one and name in ALONE else WITH_VALUE, line)
                    rest = rest[1 if is_one or name in ALONE else 2 :]
                if rest[0] in OPTIONS:
                    seen.add(rest[0])
                    self.assertLessEqual({"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}, set(words), line)
                    options = OPTIONS[rest[0]]({"TABA_AGENT_SPOOL": tempfile.gettempdir(), "STATE_DIRECTORY": tempfile.gettempdir()})
                    options.parseOptions(rest[1:])
        self.assertEqual(seen, set(OPTIONS))


@pytest.mark.real
class Run(SynchronousTestCase):
    """The steps of the Containerfile in folders of their own instead of an image's: all but those that need a root of their own."""

    def test_its_steps_make_what_starts_and_is_well_on_a_folder_that_it_may_not_write(self) -> None:
        there = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, there)
        for name in ("source", "state"):
            (there / name).mkdir()
        environ = {**os.environ, "PATH": f"{there}/python:{os.environ['PATH']}", "STATE_DIRECTORY": f"{there}/state"}
        environ |= {"CC": "false", "PIP_NO_COMPILE": "1"}  # a minute of a compiler's: that it compiles, and without one, is tried elsewhere
        (there / "python").mkdir()
        (there / "python" / "python").symlink_to(sys.executable)

        def moved(text: str) -> str:
            return re.sub(r"(?<![\w./-])/(building|taba|source|state)(?=[/\s]|$)", rf"{there}/\1", text)

        for step in STEPS:
            if step.stage == "made" and step.word == "COPY":
                *names, target = step.rest.split()
                for name in names:
                    into = there / "source" / (target if len(names) == 1 and not target.endswith("/") else f"{target}{Path(name).name}")
                    if (ROOT / name).is_dir():
                        shutil.copytree(ROOT / name, into, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
                    else:
                        into.parent.mkdir(exist_ok=True)
                        shutil.copy(ROOT / name, into)
            elif step.stage == "made" and step.word == "RUN" and "apt-get" not in step.rest:
                done = subprocess.run(moved(step.rest), shell=True, cwd=there / "source", env=environ, capture_output=True, text=True)
                if done.returncode and re.search(r"No matching distribution|Could not find a version|Connection|timed out", done.stderr):
                    raise SkipTest(f"needs what is locked to be had here: {done.stderr.strip().splitlines()[-1]}")
                self.assertEqual(done.returncode, 0, done.stderr)
        shutil.rmtree(there / "source")
        for path in (there / "taba").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        self.addCleanup(lambda: subprocess.run(["chmod", "-R", "u+w", there / "taba"]))
        environ = {"PATH": f"{there}/taba/bin", "STATE_DIRECTORY": f"{there}/state", "PYTHONDONTWRITEBYTECODE": "1"}
        for stage, more in (("server", []), ("agent", ["--agent", f"images-{os.getpid()}"])):
            port = free_port()
            [entry], [health] = of(stage, "ENTRYPOINT"), of(stage, "HEALTHCHECK")
            command = [*json.loads(entry), "--listen", f"tcp:{port}:interface=127.0.0.1", *more]
            command[0] = f"{there}/taba/bin/{command[0]}"
            asked = [re.sub(r":82\d\d/", f":{port}/", word) for word in json.loads(health.partition("CMD ")[2])]
            asked[0] = f"{there}/taba/bin/{asked[0]}"
            self.assertNotEqual(subprocess.run(asked, env=environ, stderr=subprocess.DEVNULL).returncode, 0)
            with open(there / f"{stage}.log", "wb") as log:
                process = subprocess.Popen(command, env=environ, cwd=there / "state", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                end = time.monotonic() + PATIENCE_SECONDS
                while subprocess.run(asked, env=environ, stderr=subprocess.DEVNULL).returncode:
                    self.assertIsNone(process.poll(), (there / f"{stage}.log").read_text())
                    self.assertLess(time.monotonic(), end, (there / f"{stage}.log").read_text())
            finally:
                process.terminate()
                process.wait(PATIENCE_SECONDS)
