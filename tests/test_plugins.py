"""`twistd` and Taba's services, where what they need is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.installing import install_hint
from tests.handlers.test_lookup import LONGEST
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

# the named distribution cannot be imported, as where its extra is not installed
TWISTD = """
import sys
sys.modules[sys.argv.pop(1)] = None
from twisted.scripts.twistd import run
run()
"""


class Plugins(SynchronousTestCase):
    def twistd(self, missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", TWISTD, missing, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )

    def test_a_missing_extra_is_said_in_one_line(self) -> None:
        for missing in ("txredisapi", "numpy"):
            done = self.twistd(missing, "-n", "taba-server")
            self.assertEqual((done.returncode, done.stdout), (1, ""), missing)
            self.assertEqual(done.stderr, f"taba-server: needs {missing}: {install_hint('server')}\n")

    def test_the_list_of_services_needs_no_extra(self) -> None:
        done = self.twistd("txredisapi", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("taba-server", done.stdout)
        self.assertIn("taba-agent", done.stdout)


class PluginsOfTheWorkingDirectory(SynchronousTestCase):
    def offered(self, place: Path, program: str, cwd: str | Path = "/") -> subprocess.CompletedProcess[str]:
        """What `program` does after the plugins of `place` were offered, started in `cwd`."""
        imports = "from taba.plugins import offer_plugins\nfrom taba.handlers.lookup import find_handlers\n"
        code = f"{imports}offer_plugins({str(place)!r})\n{program}"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environ)

    def made(self, *, imports: bool = False) -> Path:
        place = Path(self.mktemp()).resolve()
        plugins = place / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        if imports:
            (place / "acme.py").write_text(LONGEST)
        (plugins / "acme_longest.py").write_text(("from acme import Longest" if imports else LONGEST) + "\nlongest = Longest()\n")
        return place

    def test_a_plugin_is_found_with_what_it_imports_from_beside_it_and_in_children_too(self) -> None:
        place = self.made(imports=True)
        look = "lookup = find_handlers(); print(lookup.origin('Longest'), lookup.problems)"
        child = "from taba.handlers.lookup import find_handlers; " + look
        done = self.offered(place, f"{look}\nimport subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
        self.assertEqual((done.stdout, done.stderr), ("plugin acme_longest ()\n" * 2, ""))

    def test_children_find_it_too_where_python_itself_looks_in_the_directory_in_which_this_process_was_started(self) -> None:
        place = self.made(imports=True)
        look = "from taba.handlers.lookup import find_handlers; print(find_handlers().origin('Longest'))"
        (place / "look.py").write_text(look)
        child = "from taba.directories import python_of; import subprocess; subprocess.run(python_of('look'))"
        done = self.offered(place, child, cwd=place)  # -c has that directory first on its path, as -m has
        self.assertEqual((done.stdout, done.stderr), ("plugin acme_longest\n", ""))

    def test_where_it_was_looked_is_told(self) -> None:
        place = self.made()
        done = self.offered(place, "print(*find_handlers().places, sep='\\n')")
        self.assertIn(str(place / "twisted" / "plugins"), done.stdout.splitlines(), done.stderr)

    def test_a_directory_without_plugins_changes_nothing(self) -> None:
        place = Path(self.mktemp()).resolve()
        place.mkdir()
        done = self.offered(place, "import os, sys; print(os.environ['PYTHONPATH'], sys.path)")
        self.assertNotIn(str(place), done.stdout, done.stderr)

    def test_a_folder_that_everybody_can_write_to_is_refused_and_named(self) -> None:
        for part in (".", "twisted", "twisted/plugins"):
            place = self.made()
            (place / part).chmod(0o777)
            done = self.offered(place, "")
            self.assertIn("ConfigurationError", done.stderr)
            self.assertIn(f"'{(place / part).resolve()}': takes", done.stderr)

    @pytest.mark.real
    def test_a_server_and_its_workers_load_what_lies_where_it_is_started(self) -> None:
        for more in ((), ("--workers", "2")):
            services = Services()
            self.addCleanup(services.stop)
            services.environ["PYTHONPATH"] = str(ROOT)
            plugins = services.directory / "twisted" / "plugins"
            plugins.mkdir(parents=True)
            (plugins / "acme_longest.py").write_text(LONGEST + "longest = Longest()\n")
            services.start_server(*more)
            status = services.query.status()
            self.assertEqual(status["handlers"]["Longest"]["origin"], "plugin acme_longest", more)
            local = json.loads(services.taba("handlers", "--local", "--json").stdout)
            self.assertEqual(local["handlers"]["Longest"]["origin"], "plugin acme_longest")
            services.query.post_events("web/1", [{"tab": "odd", "type": "NoSuchType", "value": 1}])
            problems = services.query.status()["problems"]
            self.assertTrue(any("NoSuchType" in problem and str(plugins) in problem for problem in problems), problems)
            services.stop()
