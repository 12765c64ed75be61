"""Plugins that hang, crash or fail while they are imported: the Server finds the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent.parent.parent
GOOD = """
from taba.handlers import Handler
class {0}(Handler):
    type = "{0}"
    def new_state(self): return 0
    def fold(self, state, events, now): return state + len(events.values)
    def project(self, state, now): return {{"n": state}}
    def aggregate(self, projections): return {{"n": sum(p["n"] for p in projections)}}
"""


class Probing(SynchronousTestCase):
    def find(self, plugins: dict[str, str], modules: dict[str, str], program: str) -> str:
        """What `program` prints in an interpreter with these plugins, and modules of which each is an entry point."""
        site = Path(self.mktemp()).resolve()
        (site / "twisted" / "plugins").mkdir(parents=True)
        for name, source in plugins.items():
            (site / "twisted" / "plugins" / f"{name}.py").write_text(source)
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
            (site / f"{name}-1.0.dist-info").mkdir()
            (site / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (site / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[taba.handlers]\n{name} = {name}:{name.capitalize()}\n")
        script = (
            "import json\nfrom taba.server.work import probing\nprobing.IMPORT_SECONDS = 3.0\nlookup = probing.find_safely()\n" + program
        )
        environ = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=PATIENCE_SECONDS, cwd="/"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    @pytest.mark.real  # seven processes, two of which are waited for
    def test_what_hangs_crashes_or_exits_is_left_out_and_said(self) -> None:
        found = self.find(
            {
                "good": GOOD.format("Good") + "print('hello')\ngood = Good()\n",
                "hanging": "import time\ntime.sleep(1000)\n",
                "silent": "import os, time\nos.closerange(3, 1024)\ntime.sleep(1000)\n",
                "crashing": "import ctypes\nctypes.string_at(0)\n",
                "lazy": "from taba.handlers.lazy import LazyHandler\nlazy = LazyHandler('exiting:Exiting')\n",
                "raising": "import nowhere_to_be_found\n",
            },
            {"other": GOOD.format("Other"), "exiting": "import os\nos._exit(0)\n"},
            "print(json.dumps([lookup.types, lookup.problems, sorted(lookup.excluded)]))",
        )
        types, problems, excluded = json.loads(found.splitlines()[-1])
        self.assertLessEqual({"Good", "Other", "CounterGroup"}, set(types))
        self.assertEqual(excluded, ["entry point exiting (exiting)", "plugin crashing", "plugin hanging", "plugin lazy", "plugin silent"])
        said = "\n".join(problems)
        self.assertIn("plugin hanging: did not end within 3 s", said)
        self.assertIn("plugin silent: did not end within 3 s", said)
        self.assertIn("plugin crashing: ended the process that imported it (signal 11)", said)
        self.assertIn("plugin lazy: ended the process that imported it (exit code 0)", said)
        self.assertIn("nowhere_to_be_found", said)

    def test_without_others_no_process_is_started(self) -> None:
        out = self.find({}, {}, "probing.subprocess = None\nprint(len(probing.find_safely().types) > 5)")
        self.assertEqual(out, "True\n")
