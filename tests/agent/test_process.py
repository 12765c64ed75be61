"""The Agent as twistd runs it, killed with -9, and real clients that record meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from taba.agent.discover import Slots
from taba.installing import install_hint
from tests.agent.servers import FakeServer
from tests.leftovers import agent_name
from tests.patience import PATIENCE_SECONDS
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
RECORD = """
import sys, time
from taba import client
client.start(sys.argv[1])
tabs = [client.counter(f"tab_{number}") for number in range(10)]
words = client.tab("words", type="Buffer")
for number in range(int(sys.argv[2])):
    tabs[number % 10].inc(number)
    if number % 100 == 0:
        words.record("word %d" % number)
        time.sleep(0.01)
assert client.stats()["dropped"] == 0, client.stats()
"""

# so many processes, a few at a time, each of which records ten events and goes
CHURN = """
import os, sys
from taba import client
client.start("churn/{slot}")
jobs, words = client.counter("jobs"), client.tab("words", type="Buffer")
alive = 0
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        for value in range(9):
            jobs.inc(number)
        words.record(str(number))
        os._exit(0)
    alive += 1
    while alive >= int(sys.argv[2]) or (number == int(sys.argv[1]) - 1 and alive):
        assert os.wait()[1] == 0
        alive -= 1
"""
# records whole numbers, one more each time, until its standard input ends; then tells how many
ON_AND_ON = """
import select, sys, time
from taba import client
client.start(sys.argv[1])
tab, value = client.counter("numbers"), 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    tab.inc(value)
    value += 1
stats = client.stats()
assert stats["dropped"] == 0, stats
print(value)
"""
START_SECONDS = 60.0  # for whatever a busy machine is slow with


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


class ProcessTests(TestCase):
    timeout = 600  # each wait has a bound of its own; this one is for all of them on a busy machine

    def setUp(self) -> None:
        self.agent = agent_name()
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self._unlink)
        self.port, self.other_port = free_port(), free_port()
        self.environ = {**os.environ, "TABA_AGENT": self.agent, "PYTHONPATH": str(ROOT)}

    def _unlink(self) -> None:
        for name in os.listdir("/dev/shm"):
            if name.startswith((f"taba.{self.agent}.", f"taba-agent.{self.agent}")):
                os.unlink(f"/dev/shm/{name}")

    def start(self, *arguments: str, port: int | None = None, spool: str = "") -> subprocess.Popen[str]:
        command = [*TWISTD, "-n", "--pidfile=", "taba-agent", "--spool", str(self.directory / spool)]
        command += ["--listen", f"tcp:{port or self.port}:interface=127.0.0.1", *arguments]
        process = subprocess.Popen(command, env=self.environ, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(end, process)
        return process

    async def until(self, condition: Callable[[], Any], seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("it did not come about")
            await task.deferLater(reactor, 0.05, lambda: None)

    async def status(self, port: int | None = None) -> Any:
        def ask() -> Any:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}/v1/status", timeout=5) as answer:
                        return json.load(answer)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

        return await deferToThread(ask)

    @pytest.mark.real
    async def test_killed_again_and_again_while_clients_record_every_event_counts_once(self) -> None:
        server = FakeServer()
        self.addCleanup(server.stop)
        agent = self.start("--server", server.url)
        await self.status()
        clients = [
            subprocess.Popen([sys.executable, "-c", RECORD, f"web/{number}", "20000"], env=self.environ, cwd=ROOT, stderr=subprocess.PIPE)
            for number in range(3)
        ]
        for _ in range(4):
            await task.deferLater(reactor, 0.4, lambda: None)
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            agent = self.start("--server", server.url)
            await self.status()
        for client in clients:
            await self.until(lambda client=client: client.poll() is not None)  # type: ignore[misc]
            assert client.stderr is not None
            self.assertEqual((client.returncode, client.stderr.read()), (0, b""))
            client.stderr.close()
        await self.until(lambda: server.store.folded >= 3 * 20_200)
        await self.until(lambda: not self.rings())
        self.assertEqual(server.store.folded, 3 * 20_200)
        for number in range(3):
            self.assertEqual(server.store.events[f"web/{number}", "tab_7"], [float(value) for value in range(7, 20_000, 10)])
            self.assertEqual(server.store.events[f"web/{number}", "words"][-1], "word 19900")
        status = await self.status()
        self.assertEqual((status["recorded"], status["dropped_by_reason"]), (3 * 20_200, {}))

    def rings(self) -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name.startswith(f"taba.{self.agent}.")]

    @pytest.mark.real
    async def test_of_hundreds_of_short_lived_processes_every_event_is_folded_or_its_drop_is_counted(self) -> None:
        server = FakeServer()
        self.addCleanup(server.stop)
        self.start("--server", server.url)
        await self.status()
        recorded, room = 0, os.statvfs("/dev/shm")
        memory = room.f_bavail * room.f_frsize
        for processes, at_once, bound in ((200, 8, 256 << 20), (200, 60, 4 << 20), (60, 60, 0)):
            environ = {**self.environ, "TABA_SHM_BYTES": str(bound)}
            command = [sys.executable, "-c", CHURN, str(processes), str(at_once)]
            done = await deferToThread(
                subprocess.run, command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            recorded += 10 * processes
            await self.until(lambda: not self.rings())
            told = await self.status()
            self.assertEqual((told["recorded"], set(told["dropped_by_reason"]) - {"no_ring"}), (recorded, set()))
            dropped = told["dropped_by_reason"].get("no_ring", 0)
            # room for all of them, however late the Agent is; a container's 64 MiB of shared memory holds the rings of a hundred
            if bound == 256 << 20 and memory > 2 * bound:
                self.assertEqual(dropped, 0)
            await self.until(lambda most=recorded - dropped: server.store.folded >= most)  # type: ignore[misc]
            self.assertEqual(server.store.folded, recorded - dropped)
        self.assertGreaterEqual(dropped, 600)  # those of the last had no ring

    @pytest.mark.real
    async def test_an_agent_that_was_stopped_while_its_outbox_was_removed_and_its_name_taken_counts_nothing_twice(self) -> None:
        server = FakeServer()
        self.addCleanup(server.stop)
        first = self.start("--server", server.url, spool="first")
        await self.status()
        clients = []

        def record(name: str) -> None:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            client = subprocess.Popen([sys.executable, "-c", ON_AND_ON, name], env=self.environ, cwd=ROOT, **pipes)
            self.addCleanup(client.kill)
            clients.append((name, client))

        def folded(name: str) -> list[float]:
            return [value for (client, tab), values in server.store.events.items() if client == name for value in values]

        record("web/1")
        await self.until(lambda: folded("web/1"))
        first.send_signal(signal.SIGSTOP)
        os.unlink(f"/dev/shm/taba-agent.{self.agent}")
        same = self.start("--server", server.url, port=self.other_port, spool="first")
        _, said = await deferToThread(same.communicate)
        self.assertIn(f"process {first.pid} holds", said)
        self.assertEqual(said.count("\n"), 1, said)
        second = self.start("--server", server.url, port=self.other_port, spool="second")
        await self.until(lambda: os.path.exists(f"/dev/shm/taba-agent.{self.agent}"))
        record("web/2")
        await self.until(lambda: folded("web/2"))
        told: Any = {}
        while f"read by another Agent, process {first.pid}" not in str(told.get("problems")):
            told = await self.status(self.other_port)
        first.send_signal(signal.SIGCONT)
        said = (await deferToThread(first.communicate))[1]
        self.assertNotIn("Traceback", said)
        before = len(folded("web/1"))
        await self.until(lambda: len(folded("web/1")) > before)  # the second one reads its ring now
        for _, client in clients:
            self.addCleanup(client.wait)
        counts = {name: int((await deferToThread(client.communicate))[0]) for name, client in clients}
        second.terminate()
        await deferToThread(second.communicate)
        self.start("--server", server.url, spool="first")  # what the first one had left in its spool
        for name, count in counts.items():
            await self.until(lambda name=name, count=count: len(folded(name)) >= count)  # type: ignore[misc]
            self.assertEqual(sorted(folded(name)), list(range(count)))

    @pytest.mark.real
    async def test_wrong_configuration_and_a_second_agent_end_with_one_line(self) -> None:
        for arguments, says in (
            (["--server", "ftp://x"], "--server: 'ftp://x': takes a URL"),
            (["--agent", "a.b"], "--agent: 'a.b'"),
            (["--spool", "/dev/null"], "--spool: '/dev/null': takes a directory"),
            (["--spool", "/proc/no"], "--spool: '/proc/no': takes a directory"),
            (["--spool-bytes", "1"], "--spool-bytes: '1': takes bytes"),
            (["--outbox-bytes", "9 XiB"], "--outbox-bytes"),
            (["--listen", "tcp:8279:interface=0.0.0.0"], "--tokens"),
            (["--statsd", "udp:8x"], "--statsd: 'udp:8x': takes udp:PORT"),
        ):
            process = self.start(*arguments)
            _, said = await deferToThread(process.communicate, timeout=START_SECONDS)
            self.assertNotEqual(process.returncode, 0)
            self.assertEqual(said.count("\n"), 1, said)
            self.assertIn(says, said)
        first = self.start("--server", "http://127.0.0.1:1")
        await self.status()
        for second, says in (
            (self.start(port=self.other_port), f"process {first.pid} holds"),
            (self.start("--agent", self.agent + "x"), "takes an endpoint that is free"),
        ):
            _, said = await deferToThread(second.communicate, timeout=START_SECONDS)
            self.assertNotEqual(second.returncode, 0)
            self.assertEqual(said.count("\n"), 1, said)
            self.assertIn(says, said)
        deadline = time.monotonic() + START_SECONDS
        while "no Server has told the number of buckets yet" not in str((await self.status())["problems"]):  # after a moment's grace
            self.assertLess(time.monotonic(), deadline)
        first.terminate()
        self.assertIn(await deferToThread(first.wait), (0, -signal.SIGTERM))  # twistd ends as the signal would have ended it

    async def test_a_daemon_that_cannot_listen_ends_and_says_why_here_and_in_the_log(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", self.port))
            taken.listen()
            log = self.directory / "agent.log"
            command = [*TWISTD, f"--pidfile={self.directory}/pid", f"--logfile={log}", "taba-agent", "--spool", str(self.directory)]
            command += ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
            process = subprocess.Popen(command, env=self.environ, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            self.addCleanup(end, process)
            await self.until(lambda: process.poll() is not None)
        assert process.stderr is not None
        self.assertEqual(process.returncode, 1)
        says = f"taba-agent: --listen: 'tcp:{self.port}:interface=127.0.0.1': takes an endpoint that is free"
        self.assertIn(f"--listen: 'tcp:{self.port}", process.stderr.read())  # twistd shows a hundred bytes
        self.assertIn(says, log.read_text())
        self.assertFalse((self.directory / "pid").exists())

    async def test_a_missing_extra_is_said_in_one_line(self) -> None:
        for missing in ("treq", "numpy"):
            code = f"import sys; sys.modules[{missing!r}] = None; from twisted.scripts.twistd import run; run()"
            command = [sys.executable, "-c", code, "-n", "--pidfile=", "taba-agent"]
            done = subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(done.stderr, f"taba-agent: needs {missing}: {install_hint('agent')}\n")

    async def test_slots_of_killed_processes_are_removed_and_those_held_stay(self) -> None:
        code = "import time; from taba import client; client.counter('jobs').inc(); print(client.stats()['client'], flush=True)"
        environ = {**self.environ, "TABA_CLIENT_ID": "slots/{slot}", "PYTHONPATH": str(ROOT)}
        program = self.directory / f"slots_{self.agent}.py"  # slots are a program's own
        program.write_text(f"{code}; time.sleep(60)")
        processes = []
        before = {name for name in os.listdir("/dev/shm") if name.startswith("taba-slot.")}
        for number in range(2):
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen([sys.executable, str(program)], env=environ, **pipes)
            self.addCleanup(end, process)
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), f"slots/{number}\n")
            process.stdout.close()
            processes.append(process)
        both = {name for name in os.listdir("/dev/shm") if name.startswith("taba-slot.")} - before
        processes[0].kill()
        processes[0].wait()
        Slots().sweep()
        (left,) = both & set(os.listdir("/dev/shm"))
        self.assertTrue(left.endswith(".1"))
        processes[1].kill()
        processes[1].wait()
        Slots().sweep()
        self.assertEqual(both & set(os.listdir("/dev/shm")), set())
