"""The lookup finds what is installed, in whatever way, and reports what it cannot have."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.lookup import find_handlers
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]

LONGEST = """
from taba.handlers import Handler
class Longest(Handler):
    "The longest string seen."
    type = "Longest"
    def new_state(self): return ""
    def fold(self, state, events, now): return max([state, *events.values], key=lambda s: (len(s), s))
    def project(self, state, now): return {"longest": state}
    def aggregate(self, projections): return max(projections, key=lambda p: (len(p["longest"]), p["longest"]))
"""


class LookupTests(SynchronousTestCase):
    def found_with(self, plugins: dict[str, str], distributions: dict[str, tuple[str, str]], program: str) -> str:
        """What `program` prints in a fresh interpreter with these plugin modules and {module: (source, entry point)} on its path."""
        site = Path(self.mktemp())
        (site / "twisted" / "plugins").mkdir(parents=True)
        for name, source in plugins.items():
            (site / "twisted" / "plugins" / f"{name}.py").write_text(textwrap.dedent(source))
        for module, (source, point) in distributions.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
            metadata = site / f"{module}-1.0.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
            (metadata / "entry_points.txt").write_text(f"[taba.handlers]\n{point}\n")
        script = "from taba.handlers.lookup import find_handlers\nlookup = find_handlers()\n" + textwrap.dedent(program)
        environment = {"PYTHONPATH": f"{site.resolve()}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS, cwd="/"
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_importing_handler_brings_neither_numpy_nor_a_reactor(self) -> None:
        program = "import sys, taba.handlers; print('numpy' in sys.modules, 'twisted.internet.reactor' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.stdout, "False False\n")

    def test_the_plugin_module_of_tabas_own_handlers_imports_none_of_them(self) -> None:
        program = "import sys, twisted.plugins.taba_handlers as m; print('numpy' in sys.modules, m.noop.type)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.stdout, "False Noop\n", done.stderr)

    def test_tabas_own_handlers_are_found(self) -> None:
        lookup = find_handlers()
        self.assertEqual([problem for problem in lookup.problems if "taba" in problem], [])
        for type in ("CounterGroup", "PercentileGroup", "PercentileCounter", "TotalsCounter", "Gauge", "UpDown", "Noop"):
            self.assertEqual((getattr(lookup.get(type), "type", None), lookup.own(type), lookup.origin(type)), (type, True, "taba"))

    def test_a_handler_from_a_plugin_module_is_found(self) -> None:
        out = self.found_with(
            {"acme": LONGEST + "longest = Longest()\n"},
            {},
            "print(lookup.get('Longest').fold('a', __import__('taba.handlers').handlers.Events([1.0], ['bb']), 2.0))\n"
            "print(lookup.own('Longest'), lookup.origin('Longest'), lookup.problems)",
        )
        self.assertEqual(out, "bb\nFalse plugin acme ()\n")

    def test_handlers_from_entry_points_are_found_as_class_and_as_object(self) -> None:
        out = self.found_with(
            {},
            {
                "acme_class": (LONGEST, "longest = acme_class:Longest"),
                "acme_object": (LONGEST + "class Other(Longest): type = 'Other'\nother = Other()", "other = acme_object:other"),
            },
            "print(lookup.origin('Longest'), '|', lookup.origin('Other'), lookup.problems)",
        )
        self.assertEqual(out, "entry point longest (acme_class) | entry point other (acme_object) ()\n")

    def test_one_class_found_in_both_ways_is_no_problem(self) -> None:
        out = self.found_with(
            {"acme_plugin": "from acme import Longest\nlongest = Longest()"},
            {"acme": (LONGEST, "longest = acme:Longest")},
            "print(lookup.origin('Longest'), lookup.problems)",
        )
        self.assertEqual(out, "plugin acme_plugin ()\n")

    def test_what_cannot_be_had_is_reported_and_harms_no_other(self) -> None:
        out = self.found_with(
            {
                "aa_broken": "import no_such_module",
                "bb_exits": "raise SystemExit(3)",
                "cc_type": LONGEST + "a = Longest(); a.type = 'no type'\n",
                "dd_version": LONGEST + "a = Longest(); a.version = 0\n",
                "ee_own": LONGEST + "class Gauge(Longest): type = 'Gauge'\na = Gauge()",
                "ff_good": LONGEST + "a = Longest()\n",
                "gg_again": LONGEST + "a = Longest()\n",
                "hh_only_ihandler": "from zope.interface import implementer\nfrom taba.handlers import IHandler\n"
                "@implementer(IHandler)\nclass Thing:\n    type = 'Thing'; version = 1\na = Thing()\n",
                "ii_missing_method": "from taba.handlers import Handler\nclass Odd(Handler):\n"
                "    type = 'Odd'\n    def fold(self, state): return state\na = Odd()\n",
            },
            {"jj_raises": ("class Bad:\n    def __init__(self): raise RuntimeError('no')", "bad = jj_raises:Bad")},
            "print(lookup.origin('Longest'), lookup.own('Gauge'), lookup.origin('Gauge'), lookup.get('Odd'))\n"
            "for problem in lookup.problems: print(problem)",
        )
        first, *problems = out.splitlines()
        self.assertEqual(first, "plugin ff_good True taba None")
        expected = [
            ("plugin aa_broken", "no_such_module"),
            ("plugin bb_exits", "SystemExit"),
            ("plugin cc_type", "no type"),
            ("plugin dd_version", "version 0"),
            ("plugin ee_own", "Type Gauge is already there from taba"),
            ("plugin gg_again", "Type Longest is already there from plugin ff_good"),
            ("plugin hh_only_ihandler", "Thing"),
            ("plugin ii_missing_method", "fold"),
            ("entry point bad (jj_raises)", "RuntimeError: no"),
        ]
        for origin, reason in expected:
            matching = [problem for problem in problems if origin in problem and reason in problem]
            self.assertEqual(len(matching), 1, (origin, reason, problems))
        self.assertEqual(len(problems), len(expected), problems)
