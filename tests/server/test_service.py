"""`twistd taba-server` as real processes: its options, its workers, and what is left after kill -9."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import MARK, Entry, Header, Verdict, decode_verdicts, encode_envelope
from taba.errors import ConfigurationError
from taba.server.options import ServerOptions
from taba.server.service import make_server
from taba.tokens import READ, line_of, new_token
from tests.patience import PATIENCE_SECONDS

from ..stores import borrow
from ..streams import Streams
from ..valkey import free_port
from .running import encoded
from .samples import tab_in
from .test_http import total
from .work.hostile import PLUGIN

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120.0  # it only ends a hang


def eventually(what: Callable[[], Any]) -> Any:
    """The first true answer; what raises OSError is asked again."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            answer = what()
            if answer:
                return answer
        except OSError as failure:
            answer = failure
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {SECONDS} s: {answer}")
        time.sleep(0.05)


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        content = answer.read()
    return content if path == "/v1/envelopes" else json.loads(content)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Processes(SynchronousTestCase):
    def setUp(self) -> None:
        self.streams = Streams()
        self.directory = Path(tempfile.mkdtemp(prefix="taba-server-"))
        self.addCleanup(shutil.rmtree, self.directory, True)

    def run_server(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """A Server as users start it; it is ended with the test."""
        output = open(self.directory / "log", "ab")  # noqa: SIM115 (closed with the test)
        self.addCleanup(output.close)
        process = subprocess.Popen(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "taba-server", *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(self.directory / "state"), **environ},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stderr is not None
        process.stderr.close()

    def send(self, port: int, *entries: Entry) -> list[Verdict]:
        """Send an envelope, once the streams of its entries are open."""
        end = time.monotonic() + SECONDS
        while headers := self.streams.headers(entries):
            self.streams.opened(headers, self.send_raw(port, *headers))
            assert time.monotonic() < end, "the streams do not open"
        return self.send_raw(port, *self.streams.with_nonces(entries))

    def send_raw(self, port: int, *entries: Entry) -> list[Verdict]:
        content = ask(port, "/v1/envelopes", encode_envelope("test", "host", time.time(), None, entries))
        return decode_verdicts(content, len(entries)).verdicts

    def ready(self, port: int) -> bool:
        return bool(ask(port, "/readyz"))

    def refused(self, *arguments: str, **environ: str) -> str:
        """What a Server says that does not start: one line."""
        process = self.run_server(*arguments, **environ)
        assert process.stderr is not None
        said = process.stderr.read()
        self.assertNotEqual(process.wait(SECONDS), 0)
        self.assertEqual(said.count("\n"), 1, said)
        return said

    def refused_here(self, *arguments: str, **environ: str) -> str:
        """What such a Server says: its options are parsed and its parts made as `twistd` does, in this process."""
        with self.assertRaises((SystemExit, ConfigurationError)) as caught:
            options = ServerOptions({"STATE_DIRECTORY": str(self.directory / "state"), **environ})
            options.parseOptions(list(arguments))
            make_server(options, Clock())
        said = str(caught.exception)
        self.assertNotIn("\n", said)
        return said


class Configuration(Processes):
    def test_a_process_that_does_not_start_says_one_line(self) -> None:
        self.assertRegex(self.refused("--buckets", "0"), "^taba-server: --buckets: '0': takes ")

    def test_what_is_wrong_is_said_in_one_line_that_names_option_value_and_what_it_takes(self) -> None:
        for option, value in {
            "--listen": "tcp:8280:interface=0.0.0.0",
            "--store": "mysql://x",
            "--buckets": "0",
            "--workers": "none",
        }.items():
            line = self.refused_here(option, value)
            self.assertIn(f"{option}: ", line)
            self.assertIn(value, line)
            self.assertIn("takes", line)
        self.assertIn("--nonsense", self.refused_here("--nonsense"))
        self.assertIn("TABA_SERVER_BUCKETS: 'x'", self.refused_here(TABA_SERVER_BUCKETS="x"))
        self.assertIn("takes a TCP port with --workers", self.refused_here("--listen", "unix:/tmp/x.sock", "--workers", "2"))

    def test_off_loopback_it_takes_tokens_and_either_tls_or_a_word_that_none_is_wanted(self) -> None:
        tokens = self.directory / "tokens"
        tokens.touch(0o600)
        tokens.write_text(line_of(new_token(READ)))
        for listen in ("tcp:0", r"tcp6:0:interface=\:\:", "tcp:0:interface=192.0.2.1"):
            self.assertIn(f"--listen: {listen!r}: listens off loopback, which takes --tokens", self.refused_here("--listen", listen))
            line = self.refused_here("--listen", listen, "--tokens", str(tokens))
            self.assertIn(
                f"--listen: {listen!r}: listens off loopback, which takes --tls-cert FILE and --tls-key FILE, or --insecure", line
            )
            self.assertIn("takes --tokens", self.refused_here("--listen", listen, "--insecure"))
        self.assertIn("--tls-key: '/nowhere': takes --tls-cert beside it", self.refused_here("--tls-key", "/nowhere"))
        self.assertIn("--tls-cert: '/nowhere': takes a file that can be read", self.refused_here("--tls-cert", "/nowhere"))
        self.assertIn("--tokens: '/nowhere': takes a file that can be read", self.refused_here("--tokens", "/nowhere", "--workers", "2"))
        tokens.chmod(0o644)
        self.assertRegex(self.refused_here("--tokens", str(tokens)), "--tokens: '.*': takes a file that only its owner can read")

    @pytest.mark.real
    def test_a_damaged_memory_of_stores_is_no_leave_to_serve_any(self) -> None:
        (self.directory / "state").mkdir()
        for damaged in ("", "{", "[1]", '{"tcp:8280": 1}', '{"tcp:8280": ["a"]}'):
            (self.directory / "state" / "stores.json").write_text(damaged)
            line = self.refused("--store", "redis://127.0.0.1:1", "--listen", f"tcp:{free_port()}:interface=127.0.0.1")
            self.assertIn("stores.json", line)
            self.assertIn("remove it", line)

    @pytest.mark.real
    def test_a_memory_of_stores_that_was_damaged_and_mended_is_a_problem_of_every_worker(self) -> None:
        valkey, port = borrow(self), free_port()
        arguments = ("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", valkey.url)
        first = self.run_server(*arguments)
        eventually(lambda: self.ready(port))
        self.end(first)
        pins = self.directory / "state" / "stores.json"
        content = bytearray(pins.read_bytes())
        content[20] ^= 0x51
        pins.write_bytes(content)
        self.run_server(*arguments, "--workers", "2")
        eventually(lambda: self.ready(port) and self.ready(port + 1))
        for one in (port, port + 1):
            [said] = ask(one, "/v1/status")["problems"]
            self.assertIn(f"{pins}, which says which stores were served, was damaged, and nothing of it is lost", said)

    @pytest.mark.real
    def test_a_port_that_is_taken(self) -> None:
        valkey = borrow(self)
        port = free_port()
        self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", valkey.url)
        eventually(lambda: self.ready(port))
        line = self.refused("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", valkey.url)
        self.assertIn("--listen", line)
        self.assertIn("in use", line)
        self.assertRegex((self.directory / "log").read_text(), r"(?m)critical\] taba-server: --listen: .*in use")
        line = self.refused("--listen", f"tcp:{port - 1}:interface=127.0.0.1", "--store", valkey.url, "--workers", "2")
        self.assertIn("in use", line)

    def test_another_number_of_buckets_than_the_store_has(self) -> None:
        valkey = borrow(self)
        port = free_port()
        self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", valkey.url, "--buckets", "16")
        eventually(lambda: self.ready(port))
        line = self.refused("--listen", f"tcp:{free_port()}:interface=127.0.0.1", "--store", valkey.url, "--buckets", "17")
        self.assertIn("--buckets", line)
        self.assertIn("16", line)


class Lives(Processes):
    def test_a_server_starts_without_its_store_and_works_once_it_is_there(self) -> None:
        valkey = borrow(self)
        valkey.kill()
        port = free_port()
        self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", valkey.url)
        eventually(lambda: ask(port, "/healthz"))
        self.assertEqual(self.send_raw(port, Header(MARK, bytes(16), 3))[0].word, "later")
        self.assertIn("away", str(ask(port, "/v1/status")["problems"]))
        with self.assertRaises(urllib.error.HTTPError) as caught:
            ask(port, "/v1/names")
        self.assertEqual(caught.exception.code, 503)
        caught.exception.close()
        valkey.start()
        eventually(lambda: self.ready(port))

    @pytest.mark.real
    def test_what_was_acknowledged_survives_kill_9_of_server_and_embedded_store(self) -> None:
        port, tab = free_port(), tab_in(3, 0, 512)
        arguments = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        for number in range(1, 4):
            server = self.run_server(*arguments)
            eventually(lambda: self.ready(port))
            [store] = children_of(server.pid)
            self.assertEqual(self.send(port, encoded(1, 3, number, [total(tab, [1.0])])), [Verdict("applied", number)])
            if number == 2:
                os.kill(store, signal.SIGKILL)
                eventually(lambda: not lives(store))  # noqa: B023
                eventually(lambda: self.ready(port))
            server.kill()
            server.wait()
            eventually(lambda: not lives(store))  # noqa: B023
        self.run_server(*arguments)
        eventually(lambda: self.ready(port))
        self.assertEqual(ask(port, "/v1/aggregates")[tab]["count"], 3)
        self.assertEqual(self.send(port, encoded(1, 3, 3, [total(tab, [1.0])])), [Verdict("applied", 3)])

    @pytest.mark.real
    def test_workers_are_restarted_when_they_die_and_gone_when_the_parent_is(self) -> None:
        port, tab = free_port(), tab_in(3, 0, 512)
        parent = self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", "--workers", "2")
        for worker in (port, port + 1):
            eventually(lambda: self.ready(worker))  # noqa: B023
        status = ask(port, "/v1/status")
        self.assertEqual((status["workers"], status["store"]["url"]), (2, f"embedded:{self.directory}/state/store"))
        urls = [f"http://127.0.0.1:{worker}" for worker in (port, port + 1)]
        eventually(lambda: [server["url"] for server in ask(port, "/v1/servers")] == urls)
        workers = [pid for pid in children_of(parent.pid) if "worker" in Path(f"/proc/{pid}/cmdline").read_text()]
        self.assertEqual(len(workers), 2)
        for number, worker in enumerate(workers * 2, start=1):
            sent = self.send(port + number % 2, encoded(1, 3, number, [total(tab, [1.0])]))
            self.assertEqual(sent, [Verdict("applied", number)])
            if lives(worker):
                os.kill(worker, signal.SIGKILL)
            eventually(lambda: self.ready(port) and self.ready(port + 1))
        self.assertEqual(ask(port, "/v1/aggregates")[tab]["count"], 4)
        for worker in (port, port + 1):  # each tells of both
            problems = ask(worker, "/v1/status")["problems"]
            told = [problem for problem in problems if re.match(r"worker [01] was started again [12] times? lately", problem)]
            self.assertEqual(len(told), 2, problems)
        # the parent reads what workers log: one time a line
        self.assertRegex((self.directory / "log").read_text(), r"(?m)^20\S+ \[\S+\] \[worker 1\] \[taba\S+\] listening at ")
        family = children_of(parent.pid)
        self.assertEqual(len(family), 3)  # two workers and the store
        parent.kill()
        parent.wait()
        for pid in family:
            eventually(lambda: not lives(pid))  # noqa: B023

    @pytest.mark.real
    def test_a_users_own_type_that_hangs_and_crashes_harms_only_itself(self) -> None:
        plugins = self.directory / "site" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "odd_handler.py").write_text(PLUGIN)
        (plugins / "broken_handler.py").write_text("import nowhere_to_be_found")
        port = free_port()
        server = self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", PYTHONPATH=f"{plugins.parent.parent}:{ROOT}")
        eventually(lambda: self.ready(port))

        def post(key: str, *events: tuple[str, str, Any]) -> Any:
            events_of = [{"tab": tab, "type": type, "value": value} for tab, type, value in events]
            return ask(port, "/v1/events", json.dumps({"client": "web/1", "events": events_of}).encode(), **{"Idempotency-Key": key})

        # what needs the child may be answered 503, and is sent again under its key, as the answer says; the rest is taken at once
        eventually(lambda: post("first", ("good", "TotalsCounter", 1.0), ("mine", "Odd", "a")))
        for culprit in ("crash", "hang", "raise"):
            bad = json.dumps({"client": "web/1", "events": [{"tab": "bad", "type": "Odd", "value": culprit}]}).encode()
            posting = threading.Thread(
                target=eventually, args=(lambda bad=bad, key=culprit: ask(port, "/v1/events", bad, **{"Idempotency-Key": key}),)
            )
            posting.start()
            self.assertEqual(post(f"beside {culprit}", ("good", "TotalsCounter", 1.0))["accepted"], 1)
            posting.join()
        eventually(lambda: post("last", ("mine", "Odd", "b")))
        eventually(lambda: ask(port, "/v1/status")["dead_letters_by_reason"].get("handler_error") == 3)
        aggregates = ask(port, "/v1/aggregates")
        self.assertEqual(aggregates["mine"], {"words": ["a", "b"]})
        self.assertEqual(aggregates["good"]["count"], 4)
        self.assertIn("no event was folded; they are dead letters", aggregates["bad"]["error"])
        workers = [pid for pid in children_of(server.pid) if "taba.server.work.child" in Path(f"/proc/{pid}/cmdline").read_text()]
        self.assertTrue(workers)
        status = ask(port, "/v1/status")
        shown = {"version": 1, "origin": "plugin odd_handler", "errors": 3, "edge": None, "absolute": False}
        self.assertEqual(status["handlers"]["Odd"], shown)
        self.assertIn("nowhere_to_be_found", str(status["problems"]))
        server.kill()
        server.wait()
        for child in workers:
            eventually(lambda: not lives(child))  # noqa: B023

    @pytest.mark.real
    def test_a_unix_socket_is_listened_on(self) -> None:
        path = self.directory / "server.sock"
        for more, mode in (("", 0o600), (":mode=0660", 0o660)):  # the second finds the socket of the first, which was killed
            server = self.run_server("--listen", f"unix:{path}{more}")
            eventually(lambda: self.ready_at(path))
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)
            server.kill()
            server.wait()

    def ready_at(self, path: Path) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(20)

    @pytest.mark.real
    def test_a_server_that_is_told_to_stop_leaves_nothing(self) -> None:
        port = free_port()
        server = self.run_server("--listen", f"tcp:{port}:interface=127.0.0.1", "--workers", "2")
        eventually(lambda: self.ready(port) and self.ready(port + 1))
        family = children_of(server.pid)
        server.terminate()
        self.assertIn(server.wait(SECONDS), (0, -signal.SIGTERM))
        self.assertEqual([pid for pid in family if lives(pid)], [])
