"""In which form commands answer: tables on a terminal, lines elsewhere, and rows or documents of raw numbers for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.cli import terminal
from taba.cli.sharing import print_json
from tests.command import run_here, run_several
from tests.services import ROOT, BesideAServer

CONTROL = "\x1b[2J\x9b\u202e"


class Forms(BesideAServer):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        render: list[Any] = [{"tab": "render_seconds", "type": "PercentileGroup", "value": 0.0012}] * 3
        hits: list[Any] = [{"tab": "hits", "type": "CounterGroup", "value": 2, "labels": {"page": page}} for page in "ab"]
        odd: list[Any] = [
            {"tab": "odd", "type": "NoSuchType", "value": 1},
            {"tab": "said", "type": "Gauge", "value": CONTROL, "labels": {"by": CONTROL}},
            {"tab": "mixed", "type": "Gauge", "value": 1, "labels": {"kind": "a"}},
            {"tab": "mixed", "type": "TotalsCounter", "value": 1, "labels": {"kind": "b"}},
        ]
        for number, client in enumerate(("web/1", "web/2")):
            cls.services.query.post_events(client, [*render, *hits, *(odd if number == 0 else ())])

    def taba(self, *arguments: str, stdin: str = "", code: int = 0, error: str = "^$") -> str:
        done = self.services.taba(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, code, done)
        self.assertRegex(done.stderr, error)
        return done.stdout

    def on_terminal(self, *arguments: str, said: bytes = b"", code: int = 0, **environ: str) -> str:
        ended, shown = self.services.on_terminal(*arguments, said=said, **{"TERM": "xterm-256color", "COLUMNS": "100", **environ})
        self.assertEqual(ended, code, shown)
        return shown

    def test_rows_for_programs_have_raw_numbers_under_paths(self) -> None:
        head, *rows = [line.split("\t") for line in self.taba("agg", "hits", "render_seconds", "--tsv").splitlines()]
        self.assertEqual(head[0], "tab")
        by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
        self.assertEqual(by_name['hits{page="a"}']["1h.count"], "2")
        self.assertLessEqual(abs(float(by_name["render_seconds"]["1h.p99"]) - 0.0012), 0.0001)
        self.assertEqual(by_name["render_seconds"]["1h.count"], "6")
        found = list(csv.DictReader(io.StringIO(self.taba("agg", "hits", "--csv"))))
        self.assertEqual([(row["tab"], row["1h.total"]) for row in found], [('hits{page="a"}', "4"), ('hits{page="b"}', "4")])
        self.assertEqual(self.taba("agg", "nothing*", "--tsv"), "tab\n")

    def test_whatever_has_rows_gives_them(self) -> None:
        for arguments, head in (
            (("names",), "tab"),
            (("clients",), "client"),
            (("types",), "tab\ttype"),
            (("types", "--detail"), "tab\ttype\tunit\tdescription"),
            (("agg", "mixed", "--super", "--label", "kind:a"), "values.1"),
            (("proj", "hits"), "tab\tclient\t1m.count"),
            (("who", "hits"), "tab\tpath\tend\tclient\tvalue\tshare"),
            (("dead-letters",), "reason\ttab\ttype\tclient\ttime\tvalue\tdetail"),
            (("jobs",), "id\tkind\tstate"),
            (("note",), "time\ttext"),
            (("shards",), "name\turl\tbuckets"),
            (("handlers", "--local"), "type\tversion\torigin\terrors"),
        ):
            if arguments[0] == "handlers":  # they are loaded, which leaves something behind in a process
                calls = [((*arguments, form), "") for form in ("--tsv", "--csv")]
                shown, as_csv = (done.stdout for done in run_several(calls, self.services.environ, self.services.directory))
            else:
                shown, as_csv = self.taba(*arguments, "--tsv"), self.taba(*arguments, "--csv")
            self.assertTrue(shown.startswith(head), (arguments, shown[:200]))
            self.assertTrue(as_csv.startswith(head.replace("\t", ",")), arguments)
            self.assertEqual({len(line.split("\t")) for line in shown.splitlines()}, {len(shown.partition("\n")[0].split("\t"))}, arguments)
        self.taba("names", "--tsv", "--csv", code=2, error="exclude each other")
        self.taba("names", "--tsv", "--json", code=2, error="exclude each other")

    def test_what_cannot_be_answered_is_said_beside_the_rows_in_every_form(self) -> None:
        for form in ("--tsv", "--csv"):
            rows = self.taba("who", "odd", form, code=1, error="(?s)^odd: .*NoSuchType")
            self.assertEqual(len(rows.splitlines()), 1, form)
        self.taba("who", "odd", code=1, error="(?s)^odd: .*NoSuchType")
        self.assertIn("NoSuchType", json.loads(self.taba("who", "odd", "--json"))["odd"]["error"])
        for command in ("agg", "proj"):
            self.assertIn("NoSuchType", self.taba(command, "odd", "--tsv"), command)

    def test_names_come_from_standard_input_and_none_is_not_all(self) -> None:
        names = self.taba("names", "hits")
        self.assertEqual(self.taba("types", "-", stdin=names).count("CounterGroup"), 2)
        for command in ("names", "clients", "types", "agg", "proj"):
            self.assertEqual(self.taba(command, "-", stdin=""), "", command)

    def test_no_control_character_reaches_a_reader(self) -> None:
        for arguments in (
            ("names",),
            ("types",),
            ("agg",),
            ("proj",),
            ("names", "--json"),
            ("agg", "--json"),
            ("proj", "--tsv"),
            ("agg", "--csv"),
            ("who", "said", "--json"),
            ("agg", CONTROL),
            ("watch", CONTROL, "--until", "1m.count > 1", "--within", "0"),
        ):
            done = self.services.taba(*arguments)
            self.assertNotRegex(done.stdout + done.stderr, "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", arguments)
        self.assertEqual(next(iter(json.loads(self.taba("agg", "said", "--json")).values()))["values"], {CONTROL: 1})

    def test_no_control_character_but_those_of_colours_reaches_a_terminal_and_with_no_color_none_at_all(self) -> None:
        coloured, plain = r"\x1b\[[0-9;]*m", "(?!)"
        for arguments, no_color, allowed in (
            (("agg",), "", coloured),
            (("proj",), "", coloured),
            (("types", "--detail"), "", coloured),
            (("agg", "--all"), "1", plain),
            (("dead-letters",), "1", plain),
        ):
            shown = re.sub(allowed, "", self.on_terminal(*arguments, NO_COLOR=no_color))
            self.assertNotRegex(shown, "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", (arguments, no_color))

    def test_a_terminal_that_is_said_to_be_ascii_gets_nothing_else_and_a_pipe_all(self) -> None:
        self.assertTrue(self.on_terminal("agg", LC_ALL="C", TERM="dumb").isascii())
        self.assertIn("\u2581", self.on_terminal("agg", LC_ALL="C.UTF-8", TERM="dumb"))

    def test_names_are_whole_on_however_narrow_a_terminal(self) -> None:
        names = self.taba("names").splitlines()
        shown = self.on_terminal("types", "--detail", COLUMNS="40").replace("\r", "")
        for name in names:
            self.assertRegex(shown, f"(?m)^{re.escape(name)}(  |$)")

    def test_a_terminal_has_times_with_units_and_a_line_a_client(self) -> None:
        shown = self.on_terminal("proj", "render_seconds", "hits")
        self.assertRegex(shown, r"CLIENT +1M +1H +P50 +P99 +MAX +VALUE\s")
        self.assertRegex(shown, r"web/2 +3 +3 +1\.2 ms +1\.2 ms")
        self.assertRegex(self.on_terminal("proj", "hits", "--limit", "1"), "1 more; --limit shows them")
        self.assertRegex(self.on_terminal("agg", "render_seconds", "--all"), r"1\.2 ms")
        self.assertRegex(self.on_terminal("who", "render_seconds", "1h.p99"), r"1\.2 ms")
        self.assertRegex(self.on_terminal("agg", "render_seconds"), r"1M.*MAX.*TREND")
        self.assertRegex(self.on_terminal("proj", "mixed", "--all", TERM="dumb"), r"time +20\d\d-\d\d-\d\d")

    def test_a_terminal_has_a_line_a_group_and_one_for_all_dead_letters_of_a_tab_and_client(self) -> None:
        head, *groups = self.on_terminal("agg", "hits", "render_seconds", "--by", "page", TERM="dumb").splitlines()
        self.assertEqual(head.split(), ["NAME", "RATE", "1M", "1H", "P50", "P99", "MAX"])
        self.assertEqual({line.split()[0] for line in groups}, {'hits{page="a"}', 'hits{page="b"}', "render_seconds"})
        self.assertRegex(self.on_terminal("agg", "hits", "--by", "page", "--limit", "1"), "1 more; --limit shows them")
        self.assertRegex(self.on_terminal("agg", "hits", "--by", "page", "--all", TERM="dumb"), r"count +total +average")
        for number in range(3):
            self.services.query.post_events("batch/1", [{"tab": "odd", "type": "NoSuchType", "value": number}])
        shown = self.on_terminal("dead-letters", TERM="dumb")
        self.assertEqual(len(re.findall(r"odd +NoSuchType +batch/1", shown)), 1, shown)
        self.assertRegex(shown, r"unknown_type: no Handler of Type NoSuchType")
        self.assertRegex(shown, r"odd +NoSuchType +batch/1 +3 ")
        self.assertRegex(self.on_terminal("dead-letters", "--limit", "2", TERM="dumb"), "the newest 2; --limit shows more")

    def test_figures_stand_near_their_names_however_wide_the_terminal(self) -> None:
        narrow, wide = (self.on_terminal("agg", "hits", TERM="dumb", COLUMNS=columns) for columns in ("97", "250"))
        self.assertEqual(wide.splitlines()[0].split(), narrow.splitlines()[0].split())
        self.assertEqual(max(map(len, wide.splitlines())), max(map(len, narrow.splitlines())))

    def test_a_terminal_that_knows_ascii_alone_gets_ascii_and_one_without_colours_none(self) -> None:
        for arguments in (("agg",), ("agg", "--all"), ("proj",), ("status",), ("latency",), ("dead-letters",), ("help",)):
            without_agent = arguments == ("status",)
            shown = self.on_terminal(*arguments, code=int(without_agent), PYTHONIOENCODING="ascii", NO_COLOR="1")
            self.assertTrue(shown.isascii(), (arguments, shown))
            self.assertNotRegex(shown, "\x1b\\[[0-9;]*3[0-9]", arguments)
            self.assertNotIn("Traceback", shown)

    def test_types_that_have_no_sum_are_shown_without_one(self) -> None:
        self.assertEqual(len(self.taba("agg", "mixed").splitlines()), 2)
        self.assertEqual(self.taba("agg", "hits").splitlines()[-1].partition(":")[0], "hits")

    def test_a_name_that_is_not_there_is_said_once_and_waited_for(self) -> None:
        done = self.services.taba("watch", "render_second", "--until", "1m.count > 1", "--within", "0.01")
        self.assertEqual(done.returncode, 124)
        self.assertEqual(done.stderr.count("waiting: no Tab 'render_second'; "), 1)
        self.assertIn("did you mean render_seconds?", done.stderr)
        self.taba(
            "watch",
            "hits",
            "--until",
            "1m.cuont > 1",
            "--within",
            "0.01",
            code=124,
            error="(?s)^[^:]*: waiting: hits has nothing at 1m.cuont;.*not 1m.cuont > 1",
        )
        self.taba("get", "render_second", "count", code=1, error=r"did you mean render_seconds\?")

    def test_a_note_is_kept_and_shown(self) -> None:
        self.assertEqual(self.taba("note", "deploy", "1.4"), "")
        self.taba("note", "-", "--time", "1763850000", stdin="from a hook\n")
        lines = self.taba("note").splitlines()
        self.assertEqual([line.partition("  ")[2] for line in lines], ["deploy 1.4", "from a hook"])
        self.assertEqual(json.loads(self.taba("note", "--json"))[1]["time"], 1763850000)
        self.taba("note", "--time", "1", code=2, error="no TEXT")

    def test_dead_letters_are_given_up_when_a_person_says_so(self) -> None:
        self.services.query.post_events("web/9", [{"tab": "odd2", "type": "NoSuchType", "value": 1}])
        self.taba("dead-letters", "--discard", code=2, error="--yes")
        self.taba("dead-letters", "--yes", code=2, error="go with --discard")
        self.assertRegex(self.taba("dead-letters", "--discard", "--dry-run"), r"^discard: [0-9]+ dead letters? would be given up\n")
        self.assertRegex(self.on_terminal("dead-letters", "--discard", said=b"n\n", code=130), r"for ever\?")
        self.assertIn("odd2", self.taba("dead-letters"))
        self.assertRegex(self.on_terminal("dead-letters", "--discard", said=b"y\n"), r"discard: [0-9]+ dead letters? given up")
        self.assertEqual(self.taba("dead-letters"), "")
        self.services.query.post_events("web/1", [{"tab": "odd", "type": "NoSuchType", "value": 1}])

    def test_an_address_needs_no_scheme(self) -> None:
        address = self.services.server_url.removeprefix("http://")
        self.assertIn("render_seconds", self.taba("names", "--server", address))

    def test_a_shell_completes_commands_and_names(self) -> None:
        def completed(*words: str) -> list[str]:
            environ = {"_TABA_COMPLETE": "fish_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]}
            done = self.services.taba(*words, **environ)
            return re.findall(r"plain,([^\t\n]*)", done.stdout)

        self.assertEqual(completed("taba", "dead"), ["dead-letters"])
        self.assertEqual(completed("taba", "agg", "rend"), ["render_seconds"])
        self.assertEqual(completed("taba", "get", "rend"), ["render_seconds"])


class Documents(SynchronousTestCase):
    def test_json_means_the_same_in_whatever_encoding_it_is_written(self) -> None:
        content = {"µ – …": ["é", "\u2588", "\U0001f600", CONTROL, "plain"]}
        for encoding, is_unicode in (("utf-8", True), ("UTF8", True), ("ascii", False), ("latin-1", False), ("utf-16", False)):
            written = io.BytesIO()
            stdout = io.TextIOWrapper(written, encoding, errors=terminal.ERRORS)
            with mock.patch("sys.stdout", stdout):
                print_json(content)
                stdout.flush()
            shown = written.getvalue().decode(encoding)
            self.assertEqual((json.loads(shown), shown.isascii()), (content, not is_unicode), encoding)
            self.assertNotRegex(shown, "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


class Help(SynchronousTestCase):
    def test_help_groups_all_commands_by_whom_they_are_for(self) -> None:
        from taba.cli.commands import Grouped, command

        grouped = [name for names in Grouped.groups.values() for name in names]
        self.assertEqual(sorted(grouped), sorted(command.commands))
        shown = run_here(("help",), os.environ, ROOT).stdout
        self.assertEqual(shown, run_here(("--help",), os.environ, ROOT).stdout)
        places = [shown.index(f"{title}:") for title in Grouped.groups]
        self.assertEqual(places, sorted(places))
        self.assertIn("Usage: taba agg", run_here(("help", "agg"), os.environ, ROOT).stdout)
        self.assertIn("Usage: taba handler try", run_here(("help", "handler", "try"), os.environ, ROOT).stdout)
        wrong = run_here(("help", "nothing"), os.environ, ROOT)
        self.assertEqual((wrong.returncode, wrong.stdout), (2, ""))

    def test_each_shell_has_its_completion(self) -> None:
        for shell in ("bash", "zsh", "fish"):
            shown = run_here(("completion", shell), os.environ, ROOT)
            self.assertEqual((shown.returncode, shown.stderr), (0, ""))
            self.assertIn("_TABA_COMPLETE", shown.stdout)
