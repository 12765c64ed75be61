"""Servers and Agents of which some are a version newer: what all read is written; where nothing fits it waits. Everything counts once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba import batch, versions
from taba.batch import Column, Header, decode_batch, decode_envelope, encode_batch, encode_envelope
from taba.errors import UnknownVersion
from taba.query import Query, QueryError
from taba.versions import FIRST, HERE, Chosen, Versions, choose, read_told
from tests.processes import twistd
from tests.services import Services

SOONER = "import taba.server.fold.envelopes as envelopes; envelopes.VERSION_SECONDS = 5.0"  # else half a minute for an upgrade
PATIENCE = 90.0  # seconds for whatever comes in the end
OLDER, NEWER, LATEST = HERE, Versions((4, 3), (3, 2)), Versions((5, 4), (4, 3))  # who pretends differs in its numbers alone
# what a later version has in its source: before anything else has these by name, or as the default of an argument
PRETENDS = """
import taba.batch as batch, taba.versions as versions
versions.HERE = here = versions.Versions({0}, {1})
batch.BATCH_VERSION, batch.ENVELOPE_VERSION = here.batches[0], here.envelopes[0]
batch.encode_batch.__defaults__ = (*batch.encode_batch.__defaults__[:-1], here.batches[0])
batch.encode_envelope.__defaults__ = (here.envelopes[0],)
"""
ASKS = """
import taba.agent.drain as drain, taba.agent.keeper as keeper
print(batch.BATCH_VERSION, keeper.BATCH_VERSION, drain.encode.__defaults__[-1], drain.encode_lots.__defaults__[-1])
print(batch.encode_batch(bytes(16), 5, 1, [])[1], batch.encode_envelope("a", "h", 1.0, None, [])[3])
"""
RECORDS = """
import select, sys, time
from taba import client
client.start("load/1")
hits = client.tab("hits", type="TotalsCounter")
count = 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100):
        hits.record(1.0)
    count += 100
    time.sleep(0.01)
stats = client.stats()
print(count, stats["dropped"], flush=True)
"""


class Choosing(SynchronousTestCase):
    def test_the_latest_that_all_servers_read_is_written(self) -> None:
        for own, servers, found in (
            (OLDER, [OLDER], (3, 2)),
            (OLDER, [NEWER], (3, 2)),
            (NEWER, [OLDER], (3, 2)),
            (NEWER, [NEWER], (4, 3)),
            (NEWER, [NEWER, OLDER, NEWER], (3, 2)),
            (NEWER, [NEWER, LATEST], (4, 3)),
            (NEWER, [], (4, 3)),
        ):
            chosen = choose(own, [(f"http://{n}", read) for n, read in enumerate(servers)])
            self.assertEqual(chosen, Chosen(*found))

    def test_where_none_fits_the_server_and_both_versions_are_named_and_the_latest_is_written(self) -> None:
        for own, servers in ((LATEST, [NEWER, OLDER]), (OLDER, [NEWER, LATEST])):
            chosen = choose(own, [(f"http://{n}", read) for n, read in enumerate(servers)])
            self.assertEqual(chosen[:2], (own.batches[0], own.envelopes[0]))
            mine, theirs = (", ".join(map(str, one.batches)) for one in (own, servers[1]))
            self.assertIn(
                f"batches are written here in version {mine}, and not all Servers read one of these: http://1", str(chosen.problem)
            )
            self.assertIn(
                f"http://1 reads {theirs}; what is recorded waits in outbox and spool: upgrade the older side", str(chosen.problem)
            )
        # each pair has one in common, and all together have none
        apart = choose(Versions((4, 3), (2,)), [("http://a", Versions((4,), (2,))), ("http://b", Versions((3,), (2,)))])
        self.assertEqual(apart[:2], (4, 2))
        self.assertIn("not all Servers read one of these", str(apart.problem))

    def test_who_tells_nothing_reads_the_first_and_nonsense_is_refused(self) -> None:
        self.assertEqual(read_told({}), FIRST)
        self.assertEqual(read_told(NEWER.told()), NEWER)
        self.assertEqual(read_told({"batch_versions": [3, 4]}), Versions((4, 3), (2,)))
        for told in ([], None, *({"batch_versions": bad} for bad in ([], None, "3", [3.0], [True], list(range(17))))):
            self.assertRaises(ValueError, read_told, told)

    def test_what_is_written_in_a_version_is_read_by_whoever_reads_that_and_by_nobody_else(self) -> None:
        column = Column("web/1", "hits", "TotalsCounter", bytes(8), bytes(8))
        contents = {number: encode_batch(bytes(16), 5, 1, [column], version=number) for number in (3, 4)}
        around = {number: encode_envelope("a", "h", 1.0, None, [Header("open", bytes(16), 5)], number) for number in (2, 3)}
        for here in (OLDER, NEWER):
            self.patch(versions, "HERE", here)
            for number, content in contents.items():
                if number in here.batches:
                    self.assertEqual(decode_batch(content).columns, [column])
                else:
                    error = self.assertRaises(UnknownVersion, decode_batch, content)
                    self.assertEqual(str(error), "batch version 4; version 3 is read here: upgrade the older side")
            for number, content in around.items():
                if number in here.envelopes:
                    self.assertEqual(len(decode_envelope(content).entries), 1)
                else:
                    self.assertRaises(UnknownVersion, decode_envelope, content)

    def test_this_program_reads_what_it_writes(self) -> None:
        self.assertEqual((HERE.batches[0], HERE.envelopes[0]), (batch.BATCH_VERSION, batch.ENVELOPE_VERSION))


class Pretending(SynchronousTestCase):
    def test_who_pretends_has_the_later_numbers_wherever_they_stand(self) -> None:
        told = subprocess.run([sys.executable, "-c", PRETENDS.format(*NEWER) + ASKS], capture_output=True, text=True, timeout=60)
        self.assertEqual(told.stdout.split(), ["4"] * 5 + ["3"], told.stderr)


@pytest.mark.real
class Real(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.agent = Query(self.services.agent_url, role="Agent")

    def start(self, name: str, here: Versions) -> None:
        """Start it as one that reads and writes these."""
        services = self.services
        if name == "server":
            port, store = services.server_port, f"embedded:{services.directory / 'store'}"
            options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--store", store]
        else:
            port = services.agent_port
            options = ["--agent", services.agent, "--server", services.server_url, "--listen", f"tcp:{port}:interface=127.0.0.1"]
            options += ["--spool", str(services.directory / "spool")]
        python, flag, code, *rest = twistd(f"taba-{name}", *options)
        sooner = "import taba.agent.forward as forward; forward.LEARN_SECONDS = 0.5" if name == "agent" else SOONER
        pretends = f"{PRETENDS.format(*here)}\n{sooner}\n{code}"
        services._start(name, [python, flag, pretends, *rest], port)

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if answer := what():
                    return answer
            except QueryError as error:
                answer = error
            self.assertLess(time.monotonic(), deadline, str(answer))
            time.sleep(0.05)

    def count(self) -> int:
        return int(self.services.query.aggregates(name="hits").get("hits", {}).get("count", 0))

    def begin(self) -> subprocess.Popen[str]:
        load = subprocess.Popen(
            [sys.executable, "-c", RECORDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.services.environ
        )
        assert load.stdout is not None and load.stdin is not None
        for last in (load.stdout.close, load.stdin.close, load.wait, load.kill):
            self.addCleanup(last)
        self.assertEqual(load.stdout.readline(), "begun\n")
        return load

    def more(self) -> None:
        """Events that are recorded from now on come through."""
        [before] = self.until(lambda: [self.count()])
        self.until(lambda: self.count() > before + 100)

    def end(self, load: subprocess.Popen[str]) -> None:
        """Everything that was recorded counts, once."""
        assert load.stdout is not None and load.stdin is not None
        load.stdin.write("enough\n")
        load.stdin.flush()
        recorded, dropped = map(int, load.stdout.readline().split())
        self.until(lambda: self.count() >= recorded - dropped)
        self.assertEqual(self.count(), recorded - dropped)
        self.assertEqual(self.services.query.status()["dead_letters"], 0)

    def writes(self, version: int) -> None:
        self.until(lambda: self.agent.status()["batch_version"] == version)

    def test_either_side_is_upgraded_first_under_load_and_everything_counts_once(self) -> None:
        self.start("server", OLDER)
        self.start("agent", NEWER)
        load = self.begin()
        self.more()
        self.writes(3)
        self.services.kill_server()
        self.start("server", NEWER)
        self.writes(4)
        self.more()
        self.services.kill_agent()
        self.start("agent", OLDER)  # it has batches of the newer version in its outbox: they are bytes to it
        self.writes(3)
        self.more()
        self.end(load)
        # while its Agent is away a ring may fill: that is in the books above
        self.assertLessEqual(set(self.agent.status()["dropped_by_reason"]), {"ring_full"})

    def test_where_nothing_fits_both_say_so_everything_waits_and_counts_once_when_the_older_side_is_upgraded(self) -> None:
        self.start("server", OLDER)
        self.start("agent", LATEST)
        load = self.begin()
        agent_says = f"batches are written here in version 5, 4, and not all Servers read one of these: {self.services.server_url} reads 3;"
        self.until(lambda: [one for one in self.agent.status()["problems"] if agent_says in one])
        self.until(
            lambda: [one for one in self.services.query.status()["problems"] if "an Agent sends what this Server does not read" in one]
        )
        self.assertEqual(self.count(), 0)
        self.services.kill_server()
        self.start("server", Versions((5, 4, 3), (4, 3, 2)))
        self.more()
        self.end(load)
        self.until(lambda: not [one for one in self.agent.status()["problems"] if "are written here in version" in one])
