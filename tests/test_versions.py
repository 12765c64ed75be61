"""Servers and Agents of which some are a version newer: what all read is written; where nothing fits it waits. Everything counts once."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba import batch, versions
from taba.batch import Column, Header, decode_batch, decode_envelope, encode_batch, encode_envelope
from taba.errors import UnknownVersion
from taba.query import Query, questions
from taba.versions import FIRST, HERE, Chosen, Versions, choose, raised, read_told
from tests.patience import PATIENCE_SECONDS, until
from tests.processes import free_port, twistd
from tests.services import ANSWER_SECONDS, Services
from tests.valkey import EphemeralValkey

from .faults.load import Load

WRITTEN = "written in version {0}, the latest that all {1} Servers read"
SOONER = "import taba.server.fold.envelopes as envelopes; envelopes.VERSION_SECONDS = 5.0"  # else half a minute for an upgrade
OLDER, NEWER = HERE, Versions((6, 5), (3, 2), stores=(4, 3))  # who pretends differs in its numbers alone
LATEST = Versions((7, 6), (4, 3), stores=(5, 4))
# what a later version has in its source: before anything else has these by name, or as the default of an argument
PRETENDS = """
import taba.batch as batch, taba.batch.writing as writing, taba.versions as versions
versions.HERE = here = versions.Versions({0}, {1}, {2}, {3})
batch.BATCH_VERSION, batch.ENVELOPE_VERSION = writing.BATCH_VERSION, _ = here.batches[0], here.envelopes[0]
batch.encode_batch.__defaults__ = (*batch.encode_batch.__defaults__[:-1], here.batches[0])
batch.encode_envelope.__defaults__ = (here.envelopes[0],)
"""
ASKS = """
from inspect import signature
import taba.agent.encoding as encoding, taba.agent.keeper as keeper
by_default = [signature(encodes).parameters["version"].default for encodes in (encoding.encode, encoding.encode_lots)]
print(batch.BATCH_VERSION, keeper.BATCH_VERSION, *by_default)
print(batch.encode_batch(bytes(16), 5, 1, [])[1], batch.encode_envelope("a", "h", 1.0, None, [])[3])
"""


class Choosing(SynchronousTestCase):
    def test_the_latest_that_all_servers_read_is_written(self) -> None:
        for own, servers, found in (
            (OLDER, [OLDER], (5, 2)),
            (OLDER, [NEWER], (5, 2)),
            (NEWER, [OLDER], (5, 2)),
            (NEWER, [NEWER], (6, 3)),
            (NEWER, [NEWER, OLDER, NEWER], (5, 2)),
            (NEWER, [NEWER, LATEST], (6, 3)),
            (NEWER, [], (6, 3)),
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
        apart = choose(Versions((6, 5), (2,)), [("http://a", Versions((6,), (2,))), ("http://b", Versions((5,), (2,)))])
        self.assertEqual(apart[:2], (6, 2))
        self.assertIn("not all Servers read one of these", str(apart.problem))

    def test_who_tells_nothing_reads_the_first_and_nonsense_is_refused(self) -> None:
        self.assertEqual(read_told({}), FIRST)
        self.assertEqual(read_told(NEWER.told()), NEWER)
        self.assertEqual(read_told({"batch_versions": [5, 6]}), Versions((6, 5), (2,)))
        self.assertEqual(read_told({"store_versions": [4, 3]}).stores, (4, 3))
        nonsense: list[Any] = [[], None, "3", [3.0], [True], list(range(17))]
        refused: list[Any] = [[], None, *({"batch_versions": bad} for bad in nonsense)]
        for told in refused:
            self.assertRaises(ValueError, read_told, told)

    def test_a_store_is_raised_to_the_latest_that_all_read_and_never_back(self) -> None:
        for own, servers, now, found in (
            (OLDER, [OLDER, OLDER], 3, 3),
            (OLDER, [NEWER], 3, 3),
            (NEWER, [NEWER, OLDER], 3, 3),
            (NEWER, [NEWER, NEWER], 3, 4),
            (NEWER, [NEWER, LATEST], 4, 4),
            (LATEST, [LATEST], 4, 5),
        ):
            self.assertEqual(raised(own, [(f"http://{n}", read) for n, read in enumerate(servers)], now), found)
        for own, servers, now, culprit in (
            (LATEST, [NEWER, OLDER], 4, "http://1 reads stores of version 3, and this one is of version 4"),
            (OLDER, [NEWER], 4, "this command reads stores of version 3"),
            (NEWER, [], 6, "this command reads stores of version 4, 3"),
        ):
            with self.assertRaisesRegex(ValueError, culprit):
                raised(own, [(f"http://{n}", read) for n, read in enumerate(servers)], now)

    def test_what_is_written_in_a_version_is_read_by_whoever_reads_that_and_by_nobody_else(self) -> None:
        column = Column("web/1", "hits", "TotalsCounter", bytes(8), bytes(8))
        contents = {number: encode_batch(bytes(16), 5, 1, [column], version=number) for number in (5, 6)}
        around = {number: encode_envelope("a", "h", 1.0, None, [Header("open", bytes(16), 5)], number) for number in (2, 3)}
        for here in (OLDER, NEWER):
            self.patch(versions, "HERE", here)
            for number, content in contents.items():
                if number in here.batches:
                    self.assertEqual(decode_batch(content).columns, [column])
                else:
                    error = self.assertRaises(UnknownVersion, decode_batch, content)
                    self.assertEqual(str(error), "batch version 6; version 5 is read here: upgrade the older side")
            for number, content in around.items():
                if number in here.envelopes:
                    self.assertEqual(len(decode_envelope(content).entries), 1)
                else:
                    self.assertRaises(UnknownVersion, decode_envelope, content)

    def test_this_program_reads_what_it_writes(self) -> None:
        self.assertEqual((HERE.batches[0], HERE.envelopes[0]), (batch.BATCH_VERSION, batch.ENVELOPE_VERSION))


class Pretending(SynchronousTestCase):
    def test_who_pretends_has_the_later_numbers_wherever_they_stand(self) -> None:
        told = subprocess.run(
            [sys.executable, "-c", PRETENDS.format(*NEWER) + ASKS], capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(told.stdout.split(), ["6"] * 5 + ["3"], told.stderr)


@pytest.mark.real
class Real(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.agent = self.services.agent_query

    def start(self, name: str, here: Versions, store: str = "", port: int = 0) -> None:
        """Start it as one that reads and writes these."""
        services = self.services
        if name.startswith("server"):
            port = port or services.server_port
            store = store or f"embedded:{services.directory / 'store'}"
            options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--store", store, "--buckets", str(services.buckets)]
        else:
            port = services.agent_port
            options = ["--agent", services.agent, "--server", services.server_url, "--listen", f"tcp:{port}:interface=127.0.0.1"]
            options += ["--spool", str(services.directory / "spool")]
        python, flag, code, *rest = twistd("taba-agent" if name == "agent" else "taba-server", *options)
        sooner = "import taba.agent.forward as forward; forward.LEARN_SECONDS = 0.5" if name == "agent" else SOONER
        pretends = f"{PRETENDS.format(*here)}\n{sooner}\n{code}"
        services._start(name, [python, flag, pretends, *rest], port)

    def upgrade(self, here: Versions) -> subprocess.CompletedProcess[str]:
        """`taba store --upgrade` as one that reads and writes these."""
        code = PRETENDS.format(*here) + "from taba.cli.main import main; main()"
        return self.services.run("-c", code, "store", "--upgrade")

    def count(self) -> int:
        return int(self.services.query.aggregates(name="hits").get("hits", {}).get("count", 0))

    def more(self) -> None:
        """Events that are recorded from now on come through."""
        [before] = until(lambda: [self.count()])
        until(lambda: self.count() > before + 100)

    def end(self, load: Load) -> None:
        """Everything that was recorded counts, once."""
        recorded = load.end()
        until(lambda: self.count() >= recorded)
        self.assertEqual(self.count(), recorded)
        self.assertEqual(self.services.query.status()["dead_letters"], 0)

    def writes(self, version: int) -> None:
        until(lambda: self.agent.status()["batch_version"] == version)

    def test_either_side_is_upgraded_first_under_load_and_everything_counts_once(self) -> None:
        self.start("server", OLDER)
        self.start("agent", NEWER)
        load = Load(self, self.services)
        self.more()
        self.writes(5)
        self.services.kill_server()
        self.start("server", NEWER)
        self.writes(6)
        self.more()
        self.services.kill_agent()
        self.start("agent", OLDER)  # it has batches of the newer version in its outbox: they are bytes to it
        self.writes(5)
        self.more()
        self.end(load)
        # while its Agent is away a ring may fill: that is in the books above
        self.assertLessEqual(set(self.agent.status()["dropped_by_reason"]), {"ring_full"})

    def test_servers_of_two_versions_write_one_store_in_that_which_both_read_and_once_it_is_raised_the_older_one_is_refused(self) -> None:
        valkey = EphemeralValkey(tcp=True)
        self.addCleanup(valkey.remove)
        services, other_port = self.services, free_port()
        other = Query(f"http://127.0.0.1:{other_port}", timeout=ANSWER_SECONDS)

        def versions_of_store() -> list[int]:
            return [query.status()["store"]["version"] for query in (services.query, other)]

        self.start("server", OLDER, valkey.url)
        self.start("server 2", NEWER, valkey.url, other_port)
        self.start("agent", OLDER)
        load = Load(self, services)
        self.more()
        until(lambda: len(services.query.ask(questions.servers())) == 2)
        refused = self.upgrade(NEWER)
        self.assertEqual((refused.returncode, refused.stdout), (0, f"{WRITTEN.format(3, 2)}: nothing to do\n"))
        for name, here, port in (("server", NEWER, 0), ("server 2", OLDER, other_port), ("server 2", NEWER, other_port)):
            services._kill(name)
            self.start(name, here, valkey.url, port)
            self.more()
            until(lambda: versions_of_store() == [3, 3])
        until(lambda: all(4 in one["store_versions"] for one in services.query.ask(questions.servers())))
        done = self.upgrade(NEWER)
        self.assertEqual(done.stdout, f"{WRITTEN.format(4, 2)}\n", done.stderr)
        self.assertEqual(versions_of_store(), [4, 4])  # the command has had both look
        self.more()
        services._kill("server 2")
        unheard = self.upgrade(NEWER)  # it is in the list for a while
        self.assertEqual((unheard.returncode, unheard.stdout), (1, f"{WRITTEN.format(4, 2)}: nothing to do\n"))
        where = re.escape(other.url)
        self.assertRegex(unheard.stderr, rf"1 of 2 Servers did not hear of version 4: {where} .*restart it, or run this again")
        options = ["--listen", f"tcp:{other_port}:interface=127.0.0.1", "--store", valkey.url]
        back = services.run(*twistd("taba-server", *options)[1:])
        self.assertEqual(back.returncode, 1)
        [line] = back.stderr.splitlines()
        self.assertRegex(line, r"^taba-server: --store: .* of version 4, where this Taba reads version 3: a step back is not possible")
        self.end(load)

    def test_an_embedded_store_is_raised_beside_its_server_keeps_what_it_has_and_an_older_server_is_refused(self) -> None:
        services = self.services
        self.start("server", OLDER)
        until(lambda: self.count() == 0)  # it has reached its store
        services.query.post_events("web/1", [{"tab": "hits", "type": "TotalsCounter", "value": 1}] * 3)
        self.assertEqual(self.upgrade(NEWER).stdout, f"{WRITTEN.format(3, 1)}: nothing to do\n")
        services.kill_server()
        self.start("server", NEWER)
        until(lambda: self.count() == 3)
        self.assertEqual(services.query.status()["store"]["version"], 3)
        done = self.upgrade(NEWER)
        self.assertEqual(done.stdout, f"{WRITTEN.format(4, 1)}\n", done.stderr)
        services.query.post_events("web/1", [{"tab": "hits", "type": "TotalsCounter", "value": 1}])
        self.assertEqual((services.query.status()["store"]["version"], self.count()), (4, 4))
        services.kill_server()
        listen = ["--listen", f"tcp:{services.server_port}:interface=127.0.0.1"]
        back = services.run(*twistd("taba-server", *listen, "--store", f"embedded:{services.directory / 'store'}")[1:])
        self.assertEqual(back.returncode, 1)
        [line] = back.stderr.splitlines()
        self.assertRegex(line, r"^taba-server: --store: .* of version 4, where this Taba reads version 3: a step back is not possible")

    def test_where_nothing_fits_both_say_so_everything_waits_and_counts_once_when_the_older_side_is_upgraded(self) -> None:
        self.start("server", OLDER)
        self.start("agent", LATEST)
        load = Load(self, self.services)
        agent_says = f"batches are written here in version 7, 6, and not all Servers read one of these: {self.services.server_url} reads 5;"
        until(lambda: [one for one in self.agent.status()["problems"] if agent_says in one])
        until(lambda: [one for one in self.services.query.status()["problems"] if "an Agent sends what this Server does not read" in one])
        self.assertEqual(self.count(), 0)
        self.services.kill_server()
        self.start("server", Versions((7, 6, 5), (4, 3, 2), stores=(5, 4, 3)))
        self.more()
        self.end(load)
        until(lambda: not [one for one in self.agent.status()["problems"] if "are written here in version" in one])
