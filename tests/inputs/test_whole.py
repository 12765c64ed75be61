"""StatsD through a real Agent to a real Server: public clients as they are, and kills."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import psutil
import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.query import QueryError
from tests.patience import PATIENCE_SECONDS
from tests.processes import free_port
from tests.services import Services

pytestmark = pytest.mark.real

MAX_SAID = 40  # events, which become notes: as many as may at once
KILLS = int(os.environ.get("TABA_TEST_KILLS", "4"))  # one kind after the other; a hundred take some minutes

STATSD_CLIENT = """
import sys, statsd
client = statsd.StatsClient("127.0.0.1", int(sys.argv[1]), prefix="plain")
for number in range(100):
    client.incr("hits")
    client.incr("sampled", 3, rate=0.5)
    client.timing("took", 250)
    client.set("users", f"u{number % 10}")
client.gauge("depth", 7)
client.gauge("depth", 3, delta=True)
client.gauge("depth", -1, delta=True)
with client.pipeline() as pipe:
    for _ in range(50):
        pipe.incr("hits")
tcp = statsd.TCPStatsClient("127.0.0.1", int(sys.argv[1]), prefix="plain")
for _ in range(10):
    tcp.incr("hits")
tcp.close()
"""

DATADOG_CLIENT = """
import sys
from datadog.dogstatsd import DogStatsd
# what a socket's file holds are ten packets, and by itself this client drops what comes then
for options in ({"host": "127.0.0.1", "port": int(sys.argv[1])}, {"socket_path": sys.argv[2], "socket_timeout": 60}):
    client = DogStatsd(namespace="dog", constant_tags=["env:test"], disable_telemetry=True, **options)
    for number in range(100):
        client.increment("hits", tags=["route:/cart", "urgent"])
        client.histogram("size", 5.5)
        client.distribution("spread", number)
        client.timing("took", 1500)
    client.gauge("depth", 4)
    client.set("users", "a b:c")
    client.event("deployed", "1.2.3")
    client.service_check("disk", 0)
    client.flush()
    client.close_socket()
"""

HOT_SHOTS = "hot-shots@17.1.1"
HOT_SHOTS_CLIENT = """
const StatsD = require("hot-shots");
const client = new StatsD({host: "127.0.0.1", port: Number(process.argv[2]), prefix: "hot.", globalTags: {env: "test"}});
for (let number = 0; number < 50; number++) {
    client.increment("hits", 2, ["route:/cart"]);
    client.timing("took", 250);
    client.histogram("size", 5.5);
    client.distribution("spread", number);
    client.set("users", "u" + (number % 5));
}
client.gauge("depth", 4);
client.event("deployed", "1.2.3");
client.check("disk", client.CHECKS.OK);
client.close(error => process.exit(error ? 1 : 0));
"""

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Whole(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.services.start_server()
        self.port = free_port()
        self.path = str(self.services.directory / "dog.sock")

    def start_agent(self) -> None:
        self.services.start_agent("--statsd", f"udp:{self.port}", "--statsd", f"unix:{self.path}", "--statsd", f"tcp:{self.port}")

    def wait(self, what: Callable[[], Any]) -> Any:
        """What `what` says once it says something; what a part says that just starts is waited for, too."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                found = what()
                if found:
                    return found
            except (QueryError, KeyError, TypeError):
                pass
            self.assertLess(
                time.monotonic(), deadline, f"{what}: the Agent's log: {(self.services.directory / 'agent.log').read_text()[-2000:]}"
            )
            time.sleep(0.05)

    def inputs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.services.agent_query.status()["inputs"]
        return found

    def counts(self) -> dict[str, int]:
        """What all inputs count together."""
        total: dict[str, int] = {}
        for one in self.inputs():
            for name, count in one["counts"].items():
                total[name] = total.get(name, 0) + count
        return total

    def total(self, name: str) -> float:
        found = self.services.query.aggregate(name)
        return float(found["1h"]["total"]) if found else 0.0

    def run_client(self, code: str) -> None:
        done = self.services.run("-c", code, str(self.port), self.path)
        self.assertEqual(done.returncode, 0, done.stderr)


class PublicClients(Whole):
    def test_they_record_as_they_are(self) -> None:
        self.start_agent()
        self.wait(lambda: all(one["state"] == "receiving" for one in self.inputs()))
        self.run_client(STATSD_CLIENT)
        self.run_client(DATADOG_CLIENT)
        (self.services.directory / "application.py").write_text(APPLICATION)
        port = free_port()
        gunicorn = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--statsd-host", f"127.0.0.1:{self.port}", "application:app"],
            cwd=self.services.directory,
            env=self.services.environ,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(gunicorn.wait)
        self.addCleanup(gunicorn.terminate)

        def ask() -> bool:
            with socket.socket() as channel:
                if channel.connect_ex(("127.0.0.1", port)):
                    return False
                channel.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(channel.recv(100))

        for _ in range(5):
            self.wait(ask)
        self.wait(lambda: self.total("gunicorn.requests") == 5)
        self.wait(lambda: self.total("plain.hits") == 160)
        query = self.services.query
        aggregates = self.wait(lambda: (found := query.aggregates(match="(plain|dog).*")) and "dog.spread" not in found and found)
        self.assertEqual(aggregates["plain.took"]["1h"]["total"], 25.0)
        self.assertEqual(aggregates["plain.users"], {"distinct": 10})
        self.assertEqual(aggregates["plain.sampled"]["1h"]["total"] % 6, 0)
        self.assertEqual(aggregates["plain.depth"]["values"], {"9": 1})
        self.assertEqual(self.total('dog.hits{env="test",route="/cart",urgent="true"}'), 200)
        for name, total in (("size", 1100.0), ("spread", 9900.0), ("took", 300.0)):
            self.assertEqual(aggregates[f'dog.{name}{{env="test"}}']["1h"]["total"], total)
        self.assertEqual(aggregates['dog.depth{env="test"}']["clients"], 2)  # through two sockets, from two origins
        self.assertEqual(aggregates['dog.users{env="test"}'], {"distinct": 1})
        counts = self.counts()
        self.assertEqual((counts["event"], counts["service_check"], counts["notes"]), (2, 2, 4))
        self.wait(lambda: len(query.notes()) == 4)
        # each through two sockets, from two origins
        self.assertEqual(sorted(note["text"] for note in query.notes()), ["deployed: 1.2.3 (env:test)"] * 2 + ["disk is ok (env:test)"] * 2)
        self.assertEqual([problem for problem in self.services.agent_query.status()["problems"] if "StatsD" in problem], [])
        host = os.uname().nodename
        self.assertEqual({client.removeprefix(host) for client in query.clients()}, {":statsd/127.0.0.1", ":statsd/local"})

    def test_hot_shots_records_as_it_is(self) -> None:
        npm, directory = shutil.which("npm"), self.services.directory
        if npm is None:
            raise SkipTest("npm is not here: hot-shots is left out")
        install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000", HOT_SHOTS]
        try:
            done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            raise SkipTest("npm gets nothing: hot-shots is left out") from None
        if done.returncode:
            raise SkipTest(f"npm gets nothing ({done.stderr.strip().splitlines()[-1]:.200}): hot-shots is left out")
        self.start_agent()
        self.wait(lambda: all(one["state"] == "receiving" for one in self.inputs()))
        (directory / "client.js").write_text(HOT_SHOTS_CLIENT)
        done = subprocess.run(
            ["node", "client.js", str(self.port)], cwd=directory, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.wait(lambda: self.counts()["service_check"])  # which came last
        self.wait(lambda: self.total('hot.hits{env="test",route="/cart"}') == 100)
        aggregates = self.wait(lambda: len(found := self.services.query.aggregates(match="hot.*")) == 6 and found)
        for name, total in (("took", 12.5), ("size", 275.0), ("spread", 1225.0)):
            self.assertEqual(aggregates[f'hot.{name}{{env="test"}}']["1h"]["total"], total)
        self.assertEqual(aggregates['hot.users{env="test"}'], {"distinct": 5})
        self.assertEqual(aggregates['hot.depth{env="test"}']["values"], {"4": 1})
        counts = self.counts()
        self.assertEqual((counts["event"], counts["service_check"], counts["bad_line"]), (1, 1, 0))
        self.wait(lambda: len(self.services.query.notes()) == 2)
        self.assertEqual(
            sorted(note["text"] for note in self.services.query.notes()), ["hot.deployed: 1.2.3 (env:test)", "hot.disk is ok (env:test)"]
        )


class Kills(Whole):
    """Clients go on while inputs and Agents are killed: what they were told is sent is recorded, or in the books."""

    def kill_inputs(self) -> None:
        for one in self.inputs():
            if one["pid"]:
                os.kill(one["pid"], signal.SIGKILL)

    def kill_agent(self) -> None:
        inputs = psutil.Process(self.services.pid("agent")).children()
        self.services.kill_agent()
        for one in inputs:
            one.wait(PATIENCE_SECONDS)  # they end by themselves
        self.start_agent()

    def test_what_is_sent_over_kills_is_recorded_or_in_the_books(self) -> None:
        self.start_agent()
        by_port, by_file = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(by_port.close)
        self.addCleanup(by_file.close)
        by_port.connect(("127.0.0.1", self.port))
        by_file.settimeout(PATIENCE_SECONDS)

        def to_port() -> bool:
            try:
                by_port.send(b"hits:1|c")
            except ConnectionRefusedError:
                return False
            # over loopback the kernel knows at once that nobody listens
            return not by_port.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

        def to_file() -> bool:
            try:
                by_file.sendto(b"hits:1|c\nhits:1|c", self.path)
            except OSError as error:
                self.assertIn(error.errno, (errno.ECONNREFUSED, errno.ENOENT, errno.EPIPE))
                return False
            return True

        self.wait(lambda: all(one["state"] == "receiving" for one in self.inputs()))
        for one in self.inputs():  # as a whole group of processes is told: they end with their Agent, and go on until then
            os.kill(one["pid"], signal.SIGTERM)
        sent = said = 0
        for kill in itertools.islice(itertools.cycle((self.kill_inputs, self.kill_inputs, self.kill_agent, self.kill_inputs)), KILLS):
            # where Agent and input are both dead, nobody keeps what the kernel had
            self.wait(lambda: all(one["state"] == "receiving" for one in self.inputs()))
            for number in range(300):
                if number == 150:
                    if said < MAX_SAID:
                        by_port.send(b"_e{6,1}:killed|%d" % (said % 10))
                        said += 1
                    kill()
                sent += to_port() + 2 * to_file()
        self.assertGreater(sent, 500 * KILLS)

        def is_right() -> bool:
            counts = self.counts()
            lost = counts["unsure"] + counts["kernel"] + sum(self.services.agent_query.status()["dropped_by_reason"].values())
            # a note that was on its way when its Agent was killed may stand twice
            return bool(
                lost <= 2 * KILLS  # for each kill of each input one event
                and sent - lost <= self.total("hits") <= sent
                and said - lost <= len(self.services.query.notes())
            )

        self.wait(is_right)
