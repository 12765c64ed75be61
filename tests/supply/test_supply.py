from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stdout
from importlib.metadata import distribution
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from twisted.trial.unittest import SynchronousTestCase

from taba.installing import DISTRIBUTION
from tests.patience import PATIENCE_SECONDS
from tests.supply import __main__ as supply
from tests.supply.audit import Audit, audit, sentences
from tests.supply.lock import FILES, PLACES, asked_for, missing, parts_of
from tests.supply.sbom import bill, canonical, needed

ROOT = Path(__file__).parents[2]


class Bill(SynchronousTestCase):
    def test_all_that_runs_is_on_it_with_what_that_needs_in_turn(self) -> None:
        found = needed("all")
        self.assertLessEqual({"twisted", "treq", "msgpack", "numpy", "txredisapi", "hiredis", "zope-interface", "incremental"}, set(found))
        self.assertNotIn("pytest", found)
        parts = [part for part in found.values() if part is not None]
        made = bill(parts, "1.2")
        self.assertEqual((made["bomFormat"], made["metadata"]["component"]["version"]), ("CycloneDX", "1.2"))
        by_name = {part["name"]: part for part in made["components"]}
        version = distribution("twisted").version
        self.assertEqual((by_name["twisted"]["version"], by_name["twisted"]["purl"]), (version, f"pkg:pypi/twisted@{version}"))
        self.assertIn(canonical(DISTRIBUTION), by_name)
        page = ROOT / "taba" / "server" / "page" / "static" / "uPlot.js"
        self.assertEqual(by_name["uplot"]["hashes"][0]["content"], hashlib.sha256(page.read_bytes()).hexdigest())
        self.assertIn(f"(v{by_name['uplot']['version']})", page.read_text())
        json.dumps(made)

    def test_the_client_alone_needs_nothing(self) -> None:
        self.assertEqual(set(needed("")), {canonical(DISTRIBUTION)})


class Lock(SynchronousTestCase):
    def test_what_setup_cfg_asks_for_is_locked_for_each_python_and_machine(self) -> None:
        for extra, path in FILES.items():
            locked = parts_of((ROOT / path).read_text("utf-8"))
            for place in PLACES:
                for asked in asked_for((ROOT / "setup.cfg").read_text("utf-8"), extra):
                    self.assertEqual(missing(asked, locked, place), "", (path, place))

    def test_what_these_need_in_turn_is_locked_here(self) -> None:
        locked = parts_of((ROOT / FILES["all"]).read_text("utf-8"))
        here = {canonical(part.requirement.name) for part in locked if part.is_for({})}
        self.assertLessEqual(set(needed("all")) - {canonical(DISTRIBUTION)}, here)

    def test_each_part_is_locked_once_by_the_hashes_of_its_files(self) -> None:
        for path in FILES.values():
            locked = parts_of((ROOT / path).read_text("utf-8"))
            self.assertTrue(all(part.hashes and part.version for part in locked))
            for place in PLACES:
                names = [canonical(part.requirement.name) for part in locked if part.is_for(place)]
                self.assertEqual(len(names), len(set(names)), place)

    def test_what_is_locked_for_images_is_what_is_tried(self) -> None:
        tried, shipped = (
            {(f"{part.requirement.name}", part.version): part.hashes for part in parts_of((ROOT / path).read_text())}
            for path in FILES.values()
        )
        self.assertEqual({key: tried.get(key) for key in shipped}, shipped)

    def test_what_is_not_locked_is_named(self) -> None:
        text = (
            "one==1.0 ; python_full_version < '3.12' \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n"
            "one==2.0 ; python_full_version >= '3.12' --hash=sha256:ef\n"
        )
        locked = parts_of(text)
        self.assertEqual([part.hashes for part in locked], [("sha256:ab", "sha256:cd"), ("sha256:ef",)])
        old, new = {"python_full_version": "3.11.0"}, {"python_full_version": "3.12.0"}
        self.assertEqual([missing(Requirement("one>=1.5"), locked, place) for place in (old, new)], ["one>=1.5: one 1.0 is locked", ""])
        self.assertEqual(missing(Requirement("two"), locked, new), "two: is not locked")
        self.assertEqual(missing(Requirement("two; python_version < '3'"), locked, new), "")
        self.assertEqual(
            [str(asked) for asked in asked_for("[options.extras_require]\na =\n    x>=1\nb =\n    taba-metrics[a]\n    y\n", "b")],
            ["x>=1", "y"],
        )


class Run(SynchronousTestCase):
    """`./run check` and `.ci/run` in a folder of their own, where whatever they start notes that it was started, and how."""

    def setUp(self) -> None:
        self.there = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.there)
        (self.there / ".ci").mkdir()
        for name in ("setup.cfg", "setup.py", "pyproject.toml", "taba/__init__.py"):
            (self.there / name).parent.mkdir(exist_ok=True)
            (self.there / name).touch()
        # … and this one fails with `FAILS` in what it is told
        notes = (
            '#!/bin/sh\nsaid="$(basename "$0") $*"\necho "${TABA_LOCKED:-}$said" >>"$NOTES"\ncase "$said" in *"$FAILS"*) exit 1 ;; esac\n'
        )
        version = 'case "$*" in *print*) echo 3.11 ;; esac\n'
        for name, content in {
            "python": f"#!/bin/sh\n{version}",
            "id": "#!/bin/sh\necho 1000\n",  # root would install what is missing
            **{f".venv-3.11/bin/{name}": notes for name in ("python", "ruff", "mypy")},
        }.items():
            (self.there / name).parent.mkdir(parents=True, exist_ok=True)
            (self.there / name).write_text(content)
            (self.there / name).chmod(0o755)
        self.notes = notes

    def noted(self, fails: str, *command: str) -> tuple[int, list[str]]:
        """The exit code, and what was started."""
        notes = self.there / "notes"
        notes.write_text("")
        environ = {"PATH": f"{self.there}:{os.environ['PATH']}", "TABA_PYTHON": "python", "NOTES": os.fspath(notes), "FAILS": fails}
        done = subprocess.run(command, cwd=self.there, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_SECONDS)
        return done.returncode, notes.read_text().splitlines()

    def test_a_check_ends_with_what_is_wrong_with_others_code_which_judges_nothing(self) -> None:
        shutil.copy(ROOT / "run", self.there)
        for fails, code in (("supply audit", 0), ("pytest", 1), ("mypy", 1)):
            returned, noted = self.noted(fails, "./run", "check")
            self.assertEqual(bool(returned), bool(code), noted)
            self.assertEqual("python -m tests.supply audit" in noted[-1], not code, noted)
            self.assertEqual(["supply audit" in line for line in noted].count(True), 1 - code)
            self.assertTrue(any(line.startswith("python -m pytest -m real or hypothesis") for line in noted), noted)
            self.assertIn("mypy", [line.strip() for line in noted])

    def test_what_a_change_must_pass_are_tests_and_check_with_what_is_locked(self) -> None:
        shutil.copy(ROOT / ".ci/run", self.there / ".ci")
        (self.there / "run").write_text(self.notes)
        (self.there / "run").chmod(0o755)
        for fails, code, wanted in (("none", 0, ["1run test", "1run check"]), ("test", 1, ["1run test"])):
            self.assertEqual(self.noted(fails, "bash", ".ci/run"), (code, wanted))


@pytest.mark.real
class Locked(SynchronousTestCase):
    """`TABA_LOCKED=1 ./run` where pip finds one wheel, in a folder of its own."""

    def run_with(self, version: str, hash: str | None) -> str:
        """What `./run test` says where `one` of this version is locked by this hash, or the right one; nothing else is there."""
        there = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, there)
        wheel = there / "one-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as parts:
            parts.writestr("one.py", "")
            parts.writestr("one-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n")
            parts.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            parts.writestr("one-1.0.dist-info/RECORD", "")
        python = ".".join(map(str, sys.version_info[:2]))
        binaries = there / f".venv-{python}" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (binaries / "python").chmod(0o755)
        (there / ".ci").mkdir()
        hash = hash or hashlib.sha256(wheel.read_bytes()).hexdigest()
        (there / ".ci" / "locked.txt").write_text(f"one=={version} --hash=sha256:{hash}\n")
        shutil.copy(ROOT / "run", there)
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.fspath(there), "PIP_TARGET": os.fspath(there / "installed")}
        environ = {**os.environ, **pip, "TABA_LOCKED": "1", "TABA_PYTHON": sys.executable}
        ran = subprocess.run(
            [there / "run", "test"], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(ran.returncode, 1, ran.stderr)
        self.installed = (there / "installed" / "one.py").exists()
        return ran.stderr

    NOTHING_ELSE = "pip could not install taba[test]"  # there is none in that folder: pip was asked to choose

    def test_another_file_under_a_locked_name_ends_the_run(self) -> None:
        said = self.run_with("1.0", "0" * 64)
        self.assertIn("find out who changed it", said)
        self.assertNotIn(self.NOTHING_ELSE, said)
        self.assertNotIn("pip chooses", said)
        self.assertFalse(self.installed)

    def test_where_a_locked_file_cannot_be_had_pip_chooses_and_that_is_said(self) -> None:
        said = self.run_with("2.0", None)
        self.assertIn("can be had here: pip chooses", said)
        self.assertIn(self.NOTHING_ELSE, said)
        self.assertFalse(self.installed)

    def test_the_very_file_is_installed_without_a_word(self) -> None:
        said = self.run_with("1.0", None)
        self.assertNotIn("pip chooses", said)
        self.assertIn(self.NOTHING_ELSE, said)
        self.assertTrue(self.installed)


class Audits(SynchronousTestCase):
    def test_what_is_known_to_be_wrong_is_named_and_what_is_not_installed_is_said(self) -> None:
        def ask(body: bytes) -> bytes:
            asked = [query["package"]["name"] for query in json.loads(body)["queries"]]
            self.assertEqual(asked, ["bad", "good"])
            return json.dumps({"results": [{"vulns": [{"id": "X-1"}, {"id": "X-2"}]}, {}]}).encode()

        found = audit({"good": "1", "bad": "2", "gone": None}, ask)
        self.assertEqual(found.wrong, {"bad 2": ["X-1", "X-2"]})
        self.assertEqual(sentences(found), ["bad 2: X-1, X-2", "not installed here, so not looked up: gone"])

    def test_the_exit_code_tells_what_is_wrong_from_what_is_not_known_and_both_from_good(self) -> None:
        for wrong, unknown, code in [
            ({}, [], 0),
            ({}, ["not looked up"], 2),
            ({"one 1": ["X-1"]}, [], 1),
            ({"one 1": ["X-1"]}, ["and more"], 1),
        ]:
            found = Audit(wrong, unknown)
            self.patch(supply, "audit", lambda _, found=found: found)
            printed = StringIO()
            with redirect_stdout(printed):
                self.assertEqual(supply.main("audit"), code)
            self.assertEqual(printed.getvalue().splitlines(), [f"audit: {line}" for line in sentences(found)])

    def test_what_cannot_be_looked_up_is_said_and_is_no_success(self) -> None:
        def away(body: bytes) -> bytes:
            raise OSError("no route")

        answers: list[Any] = [
            away,
            *(lambda body, text=text: text for text in (b"", b"{}", b'{"results": []}', b'{"results": [1]}', b"[]")),
        ]
        for ask in answers:
            found = audit({"one": "1"}, ask)
            self.assertEqual(found.wrong, {})
            [said] = sentences(found)
            self.assertTrue(said.startswith("not looked up, 1 distributions: "), said)
