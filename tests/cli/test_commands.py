"""The `taba` command as people run it: a process of its own, against a real Server and a real Agent."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import IO, Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

import taba
from taba.cli.lines import read_line
from taba.installing import install_hint
from tests.command import run_here
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, BesideAServer

LINES = """\
# what was recorded
bids 2
bids 3
price{side="a",exchange="adx"} 1.5 TotalsCounter
price{exchange="rub"} 4 TotalsCounter
job "nightly backup" Gauge
odd 1 NoSuchType
"""


def waiting_in(pipe: IO[bytes]) -> int:
    """How many bytes of a pipe nobody has read yet."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


class Commands(BesideAServer):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.services.start_agent()
        done = cls.services.taba("record", "--client", "shell/1", stdin=LINES)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        cls.wait(lambda: cls.services.query.status()["folded"] == 5 and cls.services.query.status()["dead_letters"] == 1)

    @staticmethod
    def wait(condition: Any, seconds: float = 120.0) -> Any:
        """What `condition` gives, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.05)
        return found

    def taba(self, *arguments: str, stdin: str = "", code: int = 0, error: str = "") -> str:
        """The standard output of a command that must end with `code`, and with `error` alone on standard error."""
        done = self.services.taba(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, code, done)
        if error:
            self.assertRegex(done.stderr, error)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        else:
            self.assertEqual(done.stderr, "")
        return done.stdout

    def test_lists_are_one_a_line_and_one_json_document(self) -> None:
        prices = ['price{exchange="adx",side="a"}', 'price{exchange="rub"}']
        self.assertEqual(self.taba("names", "--client", "shell/1").splitlines(), ["bids", "job", *prices])
        self.assertEqual(json.loads(self.taba("names", "--json", "--match", "price.*")), prices)
        self.assertEqual(self.taba("names", "--label", "side:a"), prices[0] + "\n")
        self.assertEqual(self.taba("names", "--match", "nothing"), "")
        self.assertEqual(self.taba("clients", "--client-match", "shell/.*", "bids"), "shell/1\n")
        self.assertEqual(json.loads(self.taba("types", "--json", "bids", "job")), {"bids": "CounterGroup", "job": "Gauge"})

    def test_aggregates_are_one_a_line_and_one_json_document(self) -> None:
        self.assertRegex(self.taba("agg", "bids"), r'^bids: \{.*"total": 5')
        self.assertEqual(json.loads(self.taba("agg", "bids", "--json"))["bids"]["pct"]["count"], 2)
        self.assertEqual(
            set(json.loads(self.taba("agg", "--match", "price.*", "--by", "exchange", "--json"))),
            {
                'price{exchange="adx"}',
                'price{exchange="rub"}',
            },
        )
        self.assertEqual(json.loads(self.taba("agg", "--match", "price.*", "--super", "--json"))["total"], 5.5)
        self.assertEqual(json.loads(self.taba("proj", "job", "--json"))["job"]["shell/1"]["value"], "nightly backup")
        self.assertRegex(self.taba("proj", "bids"), r"^bids: \{shell/1: ")

    def test_an_unknown_name_is_an_error_for_people_and_empty_for_programs(self) -> None:
        self.assertRegex(self.taba("agg", "bids", "nope", code=1, error="no Tab 'nope'.*taba names"), "^bids: ")
        self.assertEqual(self.taba("agg", "nope", "--json"), "{}\n")
        for command in ("agg", "proj"):
            self.taba(command, "bidz", code=1, error="no Tab 'bidz' that matches; did you mean bids")

    def test_a_base_name_shows_its_labelled_tabs_and_their_sum(self) -> None:
        lines = self.taba("agg", "price").splitlines()
        self.assertEqual([line.partition(": ")[0] for line in lines], ['price{exchange="adx",side="a"}', 'price{exchange="rub"}', "price"])
        self.assertIn('"total": 5.5', lines[-1])
        self.assertEqual(self.taba("agg", "price", "--by", "exchange").splitlines()[0].partition(": ")[0], 'price{exchange="adx"}')
        self.assertEqual(len(self.taba("agg", "pri*", "bids").splitlines()), 3)
        self.assertEqual(self.taba("agg", "nothing*"), "")
        self.assertRegex(self.taba("agg", "odd"), r"^odd: .*dead letters: unknown_type")
        self.assertIn("unknown_type", json.loads(self.taba("agg", "odd", "--json"))["odd"]["error"])
        self.assertRegex(self.taba("proj", "odd"), r"^odd: \{shell/1: .*unknown_type")

    def test_what_the_server_refuses_is_said_in_one_line(self) -> None:
        self.taba("agg", "--match", "(", code=1, error="no regular expression")
        self.taba("agg", "--super", code=1, error="one Type")

    def test_what_is_no_text_is_refused_and_nobody_is_said_not_to_answer(self) -> None:
        self.taba("names", "\udcff", code=1, error="is no text")
        self.taba("delete", "tabs", "--yes", "\udcff", code=1, error="is no text")
        self.taba("get", "\udcff", "1h.count", code=2, error="is no text")

    def test_wrong_usage_ends_with_two_and_one_line(self) -> None:
        self.taba("agg", "--nonsense", code=2, error="--nonsense.*see taba agg --help")
        self.taba("nonsense", code=2, error="nonsense.*see taba --help")
        self.taba("agg", "--limit", code=2, error="--limit.*see taba agg --help")
        self.taba("token", "new", "--client", code=2, error="--client.*see taba token new --help")
        self.taba("jobs", "--cancel", "", code=1, error="no job ''")
        self.taba("names", "--label", "x", code=2, error="KEY:VALUE")
        self.taba("agg", "--super", "--by", "x", code=2, error="exclude")

    def test_what_is_no_finite_number_is_wrong_usage(self) -> None:
        for number in ("nan", "inf"):
            for command in (
                ("get", "bids", "1h.count", "--above"),
                ("watch", "bids", "--until", "1h.count > 0", "--within"),
                ("note", "deploy", "--time"),
                ("reshard", "--rebalance", "--rate"),
                ("names", "--timeout"),
                ("record", "--timeout"),
            ):
                self.taba(*command, number, code=2, error=f"'{command[-1]}'.*{number}")

    def test_status_shows_server_and_agent(self) -> None:
        text = self.taba("status")
        for part in (self.services.server_url, self.services.agent_url, "NoSuchType", "CounterGroup", "unknown_type 1"):
            self.assertIn(part, text)
        content = json.loads(self.taba("status", "--json"))
        self.assertGreaterEqual(content["folded"], 5)
        self.assertEqual(content["agent"]["agent"], self.services.agent)

    def test_an_agent_that_is_asked_as_a_server_is_shown_as_what_it_is(self) -> None:
        text = self.taba("status", "--server", self.services.agent_url)
        self.assertIn(f"Agent {self.services.agent_url}", text)
        self.assertNotIn("Server http", text)

    def test_an_agent_that_is_away_is_an_error_only_when_it_was_asked_for(self) -> None:
        environ = {"TABA_AGENT_URL": ""}
        self.taba("status", "--agent-url", "foo", code=1, error="'foo' is no address of an Agent.*:8279")
        gone = "http://127.0.0.1:9"
        self.taba("status", "--agent-url", gone, code=1, error=f"no Agent answers at {gone}.*twistd -n taba-agent")
        done = self.services.taba("status", **environ)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_dead_letters_and_latency_are_shown(self) -> None:
        [letter] = json.loads(self.taba("dead-letters", "--json"))
        self.assertEqual((letter["tab"], letter["reason"], letter["value"]), ("odd", "unknown_type", 1))
        self.assertIn("odd", self.taba("dead-letters", "--limit", "1"))
        self.assertRegex(self.taba("latency"), "^p50 .* p95 .* p99 ")
        self.assertRegex(self.taba("latency", "--seconds", "60"), "^p50 .* p95 .* p99 ")

    def test_no_server_says_what_to_start(self) -> None:
        self.taba(
            "names", "--server", "http://127.0.0.1:9", code=1, error=r"^taba: no Server answers at .*start one with: twistd -n taba-server$"
        )
        self.taba("names", "--server", "nonsense", code=1, error="'nonsense' is no address")
        done = self.services.taba("status", "--json", "--server", "http://127.0.0.1:9")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["agent"]["agent"], self.services.agent)

    def test_bad_lines_are_counted_and_the_others_recorded(self) -> None:
        for more in ((), ("--http",)):
            before = self.services.query.status()["folded"]
            done = self.services.taba("record", "--json", "--client", "shell/2", *more, stdin="good 1\n_bad 1\n\ngood\ngood 2\ngood {bad\n")
            self.assertEqual(done.returncode, 1)
            self.assertRegex(
                done.stderr, r"(?s)line 2: .*reserved.*line 4: .*no value.*line 6: .*no JSON.*2 events recorded, 3 bad lines skipped"
            )
            self.assertEqual(json.loads(done.stdout), {"recorded": 2, "bad_lines": 3})
            self.wait(lambda before=before: self.services.query.status()["folded"] == before + 2)

    def test_one_bad_line_is_one(self) -> None:
        done = self.services.taba("record", "--client", "shell/4", stdin="single 1\nsingle\n")
        self.assertIn("taba record: 1 event recorded, 1 bad line skipped", done.stderr)

    def test_so_is_one_that_gives_a_name_another_type(self) -> None:
        done = self.services.taba("record", "--client", "shell/5", stdin="twice 1\ntwice 2 Gauge\ntwice 3\n")
        self.assertRegex(done.stderr, r"(?s)line 2: .*is of Type CounterGroup.*2 events recorded, 1 bad line skipped")

    def test_recording_over_http_says_at_once_that_nobody_is_there_and_gives_up_in_time(self) -> None:
        done = self.services.taba("record", "--http", "--server", "http://127.0.0.1:9", "--timeout", "1", stdin="lost 1\n")
        self.assertEqual(done.returncode, 1)
        first, last = done.stderr.splitlines()
        self.assertRegex(first, "^taba record: no Server answers at .*trying again for 1 s$")
        self.assertRegex(last, "1 event not sent: no Server answers")

    def test_an_answer_that_cannot_be_written_is_one_line(self) -> None:
        for arguments in (["agg"], ["names", "--json"], ["status"]):
            with open("/dev/full", "w") as full:
                done = subprocess.run(
                    [sys.executable, "-m", "taba.cli.main", *arguments],
                    stdout=full,
                    stderr=subprocess.PIPE,
                    env=self.services.environ,
                    text=True,
                )
            self.assertEqual((done.returncode, done.stderr), (1, "taba: the answer cannot be written: no space left on device\n"))

    def test_placeholders_make_the_client_id_with_and_without_an_agent(self) -> None:
        for more, name in (((), "by_ring"), (("--http",), "by_post")):
            self.assertEqual(self.taba("record", "--client", "{program}/{env:TABA_AGENT}/{slot}", *more, stdin=f"{name} 1\n"), "")
            [client] = self.wait(lambda name=name: self.services.query.clients(name=name))
            # 0 unless another process of this host, of a program of this name, holds that
            self.assertRegex(client, rf"\Amain/{self.services.agent}/\d+\Z")

    @pytest.mark.real
    def test_more_lines_than_a_ring_holds_are_all_recorded(self) -> None:
        done = self.services.taba("record", "--client", "shell/3", stdin="many 1\n" * 100_000 + f'many_words "{"x" * 1000}" Gauge\n' * 1000)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.wait(lambda: (self.services.query.aggregate("many") or {"pct": {"count": 0}})["pct"]["count"] == 100_000)

    def test_a_signal_ends_recording_and_what_was_read_is_handed_on(self) -> None:
        for number, name, more in ((signal.SIGINT, "ring_way", ()), (signal.SIGTERM, "http_way", ("--http",))):
            process = subprocess.Popen(
                [sys.executable, "-m", "taba.cli.main", "record", *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.services.environ,
            )
            assert process.stdin is not None
            process.stdin.write(f"{name} 1\n".encode() * 10)
            process.stdin.flush()
            self.wait(lambda name=name: self.services.query.names(name=name))
            process.stdin.write(f"{name} 1\n".encode() * 10)
            process.stdin.flush()
            self.wait(lambda pipe=process.stdin: not waiting_in(pipe))
            process.send_signal(number)
            _, error = process.communicate(timeout=PATIENCE_SECONDS)
            self.assertEqual((process.returncode, error), (0, b""))
            self.wait(lambda name=name: (self.services.query.aggregate(name) or {})["pct"]["count"] == 20)

    def test_no_agent_is_said_and_nothing_is_dropped_silently(self) -> None:
        agent = self.services.agent + "-b"
        self.addCleanup(self._unlink, agent)
        done = self.services.taba("record", "--agent", agent, stdin="a 1\n")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr, f"no Agent has read .* twistd -n taba-agent --agent {agent}\n$")

    def _unlink(self, agent: str) -> None:
        for name in os.listdir("/dev/shm"):
            if name.startswith(f"taba.{agent}."):
                os.unlink(f"/dev/shm/{name}")

    def test_a_terminal_gets_a_line_a_tab_or_tables(self) -> None:
        head, *lines = self.on_terminal("agg", "bids", "odd").splitlines()
        self.assertEqual(head.split(), ["NAME", "RATE", "1H", "P50", "P99", "TREND", "CLIENTS"])
        self.assertEqual([line.split()[0] for line in lines], ["bids", "odd"])
        self.assertTrue(all(len(line) <= 79 for line in (head, *lines)), lines)
        self.assertIn("no event was folded", lines[1])
        self.assertEqual(self.on_terminal("agg", "price").splitlines()[-1].split()[0], "price")
        self.assertRegex(self.on_terminal("agg", "bids", "--all"), r"count +total +average")

    def test_one_figure_is_a_number_and_an_exit_status(self) -> None:
        self.assertEqual(self.taba("get", "bids", "pct.count"), "2\n")
        self.assertEqual(self.taba("get", "price", "total"), "5.5\n")
        self.assertEqual(self.taba("get", "bids", "pct.total", "--above", "4.9"), "")
        self.taba("get", "bids", "pct.total", "--above", "5", code=1)
        self.taba("get", "nobody", "pct.total", "--above", "5", code=1, error="no Tab 'nobody'")
        self.taba("get", "bids", "pct", "--above", "5", code=1, error="has no number at pct")
        for broken in ("pct[", "pct[a]", "pct]"):
            self.taba("get", "bids", broken, code=2, error="a bracket takes a place")
            self.taba("who", "bids", broken, code=2, error="a bracket takes a place")
            self.taba("watch", "bids", "--until", f"{broken} > 1", code=2, error="a bracket takes a place")
        self.assertEqual(self.taba("who", "bids", "pct.none", code=1, error="^bids: no number at pct.none; numbers are at 1m.count, "), "")
        self.taba("get", "bids", "pct.nothing", code=1, error="bids has nothing at pct.nothing")
        self.taba("get", "odd", "count", code=1, error="unknown_type")
        self.taba("get", "nobody", "count", code=1, error="no Tab 'nobody'")
        self.taba("get", "bids", ".count", code=2, error="keys joined by dots")
        self.taba("get", "bids", "count", "--server", "http://127.0.0.1:9", code=2, error="no Server answers")

    def test_watching_ends_when_it_is_so_or_the_time_is_over(self) -> None:
        self.assertEqual(self.taba("watch", "bids", "--until", "pct.count >= 2"), "2\n")
        self.taba("watch", "bids", "--until", "pct.count > 1e9", "--within", "0", code=124, error="not pct.count > 1e[+]09 within 0 s")
        self.taba("watch", "bids", "--until", "pct.count", code=2, error="a comparison|takes PATH")
        self.taba("watch", "bids", "--until", "x > 1", "--server", "http://127.0.0.1:9", code=2, error="no Server answers")

    def test_who_holds_how_much(self) -> None:
        self.assertIn("bids: greatest shell/1 2 100.0 %", self.taba("who", "bids", "pct.count"))
        self.assertEqual(json.loads(self.taba("who", "bids", "--json"))["bids"]["clients"], 1)
        self.taba("who", "nobody", code=1, error="no Tab 'nobody'")

    def on_terminal(self, *arguments: str) -> str:
        """What a terminal of 79 columns is shown."""
        code, shown = self.services.on_terminal(*arguments, TERM="dumb", COLUMNS="79")
        self.assertEqual(code, 0, shown)
        return shown

    def test_a_reader_that_has_enough_is_no_error(self) -> None:
        command = f"{sys.executable} -m taba.cli.main names | true"
        done = subprocess.run(command, shell=True, env=self.services.environ, capture_output=True, text=True)
        self.assertEqual(done.stderr, "")


class WithoutServices(SynchronousTestCase):
    def test_the_version_is_told(self) -> None:
        done = subprocess.run([sys.executable, "-m", "taba.cli.main", "--version"], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.stdout, f"taba {taba.__version__}\n")

    def test_without_its_extra_the_command_says_what_to_install(self) -> None:
        for missing in ("click", "rich"):
            code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['taba', 'names']; from taba.cli.main import main; main()"
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(install_hint("cli"), done.stderr)

    def test_the_examples_of_record_pass_each_line_on_at_once_with_the_tools_that_are_here(self) -> None:
        # awk would not do: mawk waits for a full buffer of input
        from taba.cli.record import record

        access = '10.0.0.1 - - [25/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 200 5120 "-" "curl"'
        vmstat = " r  b   swpd   free   buff  cache\n 1  0      0 812345  10203 405060"
        shown = {"tail": (access, ("bytes", 5120)), "vmstat": (vmstat, ("free", 812345))}
        pipes = [line.strip() for line in (record.epilog or "").splitlines() if line.strip().startswith(tuple(shown))]
        self.assertEqual(len(pipes), len(shown))
        for pipe in pipes:
            place = Path(self.mktemp()).resolve()
            place.mkdir()
            source = pipe.split()[0]
            # the source goes on for ever, as the real one does
            for name, script in ((source, f"cat <<'END'\n{shown[source][0]}\nEND\nexec sleep 60"), ("taba", "exec cat > out")):
                (place / name).write_text(f"#!/bin/sh\n{script}\n")
                (place / name).chmod(0o755)
            environ = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
            running = subprocess.Popen(["sh", "-c", pipe], cwd=place, env=environ, start_new_session=True)
            self.addCleanup(running.wait)
            self.addCleanup(os.killpg, running.pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not ((place / "out").exists() and (place / "out").read_text().endswith("\n")):
                self.assertLess(time.monotonic(), deadline, pipe)
                time.sleep(0.02)
            line = read_line((place / "out").read_text())
            assert line is not None
            self.assertEqual((line.name, line.value), shown[source][1], pipe)

    def test_every_command_has_help_with_examples(self) -> None:
        from taba.cli.commands import command

        for name in sorted(command.commands):
            done = run_here((name, "--help"), os.environ, ROOT)
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)
            self.assertRegex(done.stdout, f"(?s)Examples:\n.*taba {name}", name)
