"""A store that became another under Servers that run, and `taba store --accept`; what a Cluster is asked without --store."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.events import key_part
from taba.names import bucket_of
from taba.query import QueryError
from taba.shard.buckets import owner_key
from tests import services
from tests.patience import PATIENCE_SECONDS
from tests.processes import twistd
from tests.services import Services
from tests.stores import borrow
from tests.topologies import Cluster
from tests.valkey import EphemeralValkey

BUCKETS = 16

pytestmark = pytest.mark.real


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def valkey(self, **settings: Any) -> EphemeralValkey:
        valkey = borrow(self, tcp=True, **settings)
        return valkey

    def start(self, store: str) -> None:
        self.services.start_server("--buckets", str(BUCKETS), store=store)

    def restart(self, store: str) -> None:
        self.services.kill_server()
        self.start(store)

    def post(self, key: str, tab: str = "x") -> bool:
        """Whether one event was taken."""
        try:
            self.services.query.post_events("c", [{"tab": tab, "type": "TotalsCounter", "value": 1.0}], key=f"{key}-{tab}")
        except QueryError:
            return False
        return True

    def until_taken(self, key: str, tab: str = "x") -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.post(key, tab):
            self.assertLess(time.monotonic(), end, self.problems())
            time.sleep(0.1)

    def problems(self) -> str:
        return " ".join(self.services.query.status()["problems"])

    def until_said(self, says: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while says not in self.problems():
            self.assertLess(time.monotonic(), end, self.problems())
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.services.server_url}/readyz", timeout=PATIENCE_SECONDS) as answer:
                return bool(answer.status == 200)
        except HTTPError as error:
            self.assertEqual(error.code, 503)
            return False

    def taba(self, *arguments: str, code: int = 0) -> str:
        done = self.services.taba(*arguments)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def counted(self, tab: str = "x") -> float:
        total: float = self.services.query.aggregates(name=tab)[tab]["total"]
        return total


class AcceptTests(StoreCase):
    def test_one_that_is_emptied_under_a_server_is_not_made_anew_until_a_person_says_so(self) -> None:
        valkey = self.valkey()
        self.start(valkey.url)
        self.until_taken("a")
        before = self.services.query.status()["store"]["id"]
        valkey.call("FLUSHALL")
        self.until_said("has lost what it held")
        self.assertIn(f"until now this served {before}", self.problems())
        self.assertIn("taba store --accept", self.problems())
        self.assertFalse(self.post("b"))
        self.assertFalse(self.is_ready())
        self.assertEqual(valkey.call("DBSIZE"), 0)
        said = self.taba("store", "--accept")
        self.assertIn(f"follows {before}", said)
        self.until_taken("b")
        after = self.services.query.status()["store"]
        self.assertNotEqual(after["id"], before)
        self.assertEqual((self.counted(), self.is_ready()), (1.0, True))
        self.assertIn(after["id"], self.taba("store"))
        self.restart(valkey.url)  # what was accepted is remembered
        self.until_taken("c")
        self.assertEqual(self.counted(), 2.0)

    def test_another_store_behind_the_address_is_not_written_to_until_a_person_says_so(self) -> None:
        one, other = self.valkey(), self.valkey()
        self.start(other.url)
        self.until_taken("a", "theirs")
        stranger = self.services.query.status()["store"]["id"]
        self.services.kill_server()
        (self.services.directory / "taba" / "stores.json").unlink()  # as on another host
        self.start(one.url)
        self.until_taken("a")
        before = self.services.query.status()["store"]["id"]
        content = {key: other.call("DUMP", key) for key in other.call("KEYS", "*")}
        one.call("FLUSHALL")
        for key, dump in content.items():
            one.call("RESTORE", key, "0", dump)
        one.call("CLIENT", "KILL", "TYPE", "normal")  # as when another server takes the address
        self.until_said(f"is store {stranger}")
        self.assertFalse(self.post("b"))
        self.assertFalse(self.is_ready())
        self.assertIn(f"follows {before}", self.taba("store", "--accept"))
        self.until_taken("b")
        self.assertEqual(self.services.query.status()["store"]["id"], stranger)
        self.assertEqual(sorted(self.services.query.names()), ["theirs", "x"])

    def test_a_server_that_is_started_on_another_store_ends_with_one_line(self) -> None:
        one, other = self.valkey(), self.valkey()
        self.start(one.url)
        before = self.services.query.status()["store"]["id"]
        self.services.kill_server()
        options = ("--listen", f"tcp:{self.services.server_port}:interface=127.0.0.1", "--store", other.url, "--buckets", str(BUCKETS))
        done = self.services.run(*twistd("taba-server", *options)[1:])
        self.assertNotEqual(done.returncode, 0)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("taba-server: ")]
        self.assertIn(f"until now this served {before} at {one.url}", line)
        self.assertIn("If that is meant: taba store --accept", line)
        self.assertEqual(other.call("DBSIZE"), 0)
        # no Server runs: what is pinned on this host is succeeded
        said = self.taba("store", "--accept", "--store", other.url, "--buckets", str(BUCKETS))
        self.assertIn(f"follows {before}", said)
        self.start(other.url)
        self.until_taken("a")

    def test_a_read_only_replica_is_not_ready_from_the_start(self) -> None:
        primary = self.valkey()
        self.start(primary.url)
        self.until_taken("a")
        self.services.kill_server()
        replica = self.valkey(replicaof=f"127.0.0.1 {primary.port}", repl_diskless_sync_delay="0")
        end = time.monotonic() + PATIENCE_SECONDS
        while b"master_link_status:up" not in replica.call("INFO", "replication"):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.05)
        self.start(replica.url)  # the very store, and it answers every read
        self.until_said("it is a replica: name its primary in --store")
        self.assertEqual((self.counted(), self.is_ready(), self.post("b")), (1.0, False, False))

    def test_a_shard_that_lost_all_is_said_and_once_it_is_restored_said_no_more_also_after_a_restart(self) -> None:
        one, two = self.valkey(), self.valkey()
        store = f"redis://127.0.0.1:{one.port},127.0.0.1:{two.port}"
        self.start(store)
        lost = next(f"t{n}" for n in range(99) if bucket_of(f"t{n}", BUCKETS) >= BUCKETS // 2)
        self.until_taken("a", lost)
        content = {key: two.call("DUMP", key) for key in two.call("KEYS", "*")}
        two.call("FLUSHALL")
        two.call("CLIENT", "KILL", "TYPE", "normal")
        self.until_said("has lost what it held")
        self.assertFalse(self.post("b", lost))
        for key, dump in content.items():
            two.call("RESTORE", key, "0", dump)
        self.until_taken("b", lost)
        self.assertEqual(self.counted(lost), 2.0)
        self.until_no_problems()
        self.restart(store)
        self.until_no_problems()
        self.assertIn("agree", self.taba("check"))

    def until_no_problems(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while self.problems():
            self.assertLess(time.monotonic(), end, self.problems())
            time.sleep(0.1)


class ClusterTests(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.cluster = Cluster(replicas=False)
        self.addCleanup(self.cluster.remove)
        self.start(self.cluster.url)
        self.tabs = [next(f"t{n}" for n in range(999) if bucket_of(f"t{n}", BUCKETS) == bucket) for bucket in range(BUCKETS)]
        for tab in self.tabs:
            self.until_taken("a", tab)

    def test_check_asks_the_server_which_nodes_there_are(self) -> None:
        self.assertIn("all maps and owner keys agree", self.taba("check"))
        bucket = 3
        self.cluster.holder(owner_key(bucket)).call("DEL", owner_key(bucket))
        self.assertIn(f"bucket {bucket} is open nowhere", self.taba("check", code=1))
        self.assertIn("mended", self.taba("check", "--repair"))
        self.assertIn("all maps and owner keys agree", self.taba("check"))
        self.assertEqual(json.loads(self.taba("check", "--json")), [])

    def test_a_node_that_comes_back_empty_is_never_furnished_and_what_the_others_have_is_answered(self) -> None:
        node = self.cluster.holder(owner_key(5))
        lost = [bucket for bucket in range(BUCKETS) if self.cluster.holder(owner_key(bucket)) is node]
        node.call("FLUSHALL")
        node.call("CLIENT", "KILL", "TYPE", "normal")
        self.assertFalse(self.post("b", self.tabs[5]))
        left = [tab for bucket, tab in enumerate(self.tabs) if bucket not in lost]
        for tab in left:
            # a key whose record lies with the others: of one that lay on the empty node nobody can say whether it came before
            self.until_taken(next(f"b{n}" for n in range(999) if self.bucket_of_key(f"b{n}-{tab}") not in lost), tab)
            self.assertEqual(self.counted(tab), 2.0)
        self.services.kill_server()
        self.start_as_far_as_possible()
        self.assertFalse(self.post("b", self.tabs[5]))
        self.assertEqual([node.call("EXISTS", owner_key(bucket)) for bucket in lost], [0] * len(lost))
        self.assertEqual(node.call("DBSIZE"), 0)
        self.assertTrue(self.problems())

    def bucket_of_key(self, key: str) -> int:
        return int.from_bytes(key_part("c", key, b"").key[:8], "big") % BUCKETS

    def start_as_far_as_possible(self) -> None:
        """A Server that cannot answer what lies on the empty node."""
        self.patch(services, "START_SECONDS", 10.0)
        try:
            self.services.start_server("--buckets", str(BUCKETS), store=self.cluster.url)
        except QueryError as error:
            self.assertIn("cannot answer now", str(error))  # and not: no answer in time
