"""`taba handler try` and `taba handlers`, as processes; and the lines that they read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.cli.lines import MAX_LINE_CHARACTERS, read_value
from tests.command import run_several
from tests.patience import PATIENCE_SECONDS
from tests.services import BesideAServer

ROOT = Path(__file__).resolve().parents[2]

ODD = '''
from taba.handlers import Handler

class Odd(Handler):
    """Raises at "bad"; keeps what it is told."""
    type = "Odd"
    def new_state(self): return []
    def fold(self, state, events, now):
        if "bad" in list(events.values):
            raise ValueError("bad it is")
        return state + list(events.values)
    def project(self, state, now): return {"values": state, "_hidden": 1}
    def aggregate(self, projections): return projections[0]

class Lacking:
    type = "Lacking"
'''


class Lines(SynchronousTestCase):
    def test_a_line_is_a_value_and_maybe_a_time(self) -> None:
        self.assertEqual(read_value("1.5"), (1.5, None))
        self.assertEqual(read_value(" word 1763850000 \n"), ("word", 1763850000.0))
        self.assertEqual(read_value('"two words" 5'), ("two words", 5.0))
        self.assertEqual(read_value('{"value": 1, "seconds": 2}'), ({"value": 1, "seconds": 2}, None))
        self.assertEqual((read_value(""), read_value("# no")), (None, None))
        for bad in ("1 2 3", "a b", "nan", "x" * (MAX_LINE_CHARACTERS + 1)):
            self.assertRaises(ValueError, read_value, bad)


class Trying(SynchronousTestCase):
    def taba(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "taba.cli.main", *arguments]
        directory, environ = self.beside_odd()
        return subprocess.run(command, input=stdin, cwd=directory, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    def several(self, *calls: tuple[tuple[str, ...], str]) -> list[subprocess.CompletedProcess[str]]:
        directory, environ = self.beside_odd()
        return run_several(calls, environ, directory)

    def beside_odd(self) -> tuple[Path, dict[str, str]]:
        """A directory with a Handler, and the environment of who works there."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "odd.py").write_text(ODD)
        return directory, {**os.environ, "PYTHONPATH": str(ROOT)}

    def test_lines_are_folded_and_size_speed_and_projection_shown(self) -> None:
        done = self.taba("handler", "try", "odd:Odd", stdin="1\nword\n")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for part in ("Odd version 1: 2 events folded", "State: ", "bytes", '{"values": [1, "word"]}'):
            self.assertIn(part, done.stdout)
        self.assertNotIn("hidden", done.stdout)

    def test_as_json_and_in_several_lots(self) -> None:
        lines = "".join(f"{place} {1_763_850_000 + place}\n" for place in range(2500))
        content = json.loads(self.taba("handler", "try", "taba.handlers.totals_counter:TotalsCounter", "--json", stdin=lines).stdout)
        self.assertEqual((content["type"], content["events"], content["state_bytes"]), ("TotalsCounter", 2500, 40))
        self.assertEqual(content["projection"], {"count": 2500, "total": 3123750, "average": 1249.5, "min": 0, "max": 2499})
        self.assertGreater(content["fold_ns_per_event"], 0)

    def test_nothing_to_fold_shows_the_new_state(self) -> None:
        self.assertIn('{"values": []}', self.taba("handler", "try", "odd:Odd").stdout)

    def test_what_goes_wrong_is_one_line_that_says_where(self) -> None:
        wrong = (
            (("odd:Odd",), "bad\n", 1, "odd.py:10: ValueError: bad it is"),
            (("odd:Odd",), "1\n2 3 4\n", 1, "line 2: has '4' too many"),
            (("odd:Lacking",), "", 1, "does not provide IHandler"),
            (("odd:Nothing",), "", 1, "no attribute 'Nothing'"),
            (("nowhere:Odd",), "", 1, "No module named 'nowhere'"),
            (("odd",), "", 2, "takes MODULE:CLASS"),
        )
        answers = self.several(*((("handler", "try", *arguments), stdin) for arguments, stdin, _, _ in wrong))
        for (_, _, code, words), done in zip(wrong, answers, strict=True):
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (code, "", 1), done.stderr)
            self.assertIn(words, done.stderr)

    def test_what_is_installed_here_is_listed_without_a_server(self) -> None:
        done, as_json = self.several((("handlers", "--local"), ""), (("handlers", "--local", "--json"), ""))
        self.assertIn("CounterGroup: version 1, from taba\n", done.stdout)
        content = json.loads(as_json.stdout)
        self.assertEqual(content["handlers"]["TopK"], {"version": 1, "origin": "taba", "errors": 0})


class OfAServer(BesideAServer):
    def test_a_server_says_what_it_has_and_what_it_lacks(self) -> None:
        self.services.query.post_events("web/1", [{"tab": "odd", "type": "NoSuchType", "value": 1}])
        calls = ((("handlers", "--json"), ""), (("handlers",), ""))
        as_json, as_text = run_several(calls, self.services.environ, self.services.directory)
        content = json.loads(as_json.stdout)
        self.assertEqual(content["handlers"]["Buffer"], {"version": 1, "origin": "taba", "errors": 0, "edge": None, "absolute": False})
        self.assertEqual(content["types_missing"], ["NoSuchType"])
        text = as_text.stdout
        self.assertIn("Cardinality: version 1, from taba\n", text)
        self.assertIn("missing: NoSuchType: ", text)
        self.assertIn("problem: no Handler of Type NoSuchType", text)
