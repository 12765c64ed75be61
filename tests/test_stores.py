"""A store that is borrowed is as if it were new; and who starts one by himself says why."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.stores import Shelf, Started
from tests.valkey import EphemeralValkey

TESTS = Path(__file__).parent

STARTS = {"EphemeralValkey", "Services", "Cluster", "SentinelTrio", "EmbeddedStore"}
"""What starts a store, or a Server with one."""

KILLED = "its tests kill, stop or start anew what they have"
FAILED_OVER = "its primaries fail over"
SET = "each of its tests has processes with options of their own"
STARTED = "how it starts is what is tested"
OWN = {
    "agent/test_accounts.py:Accounts": KILLED,
    "agent/test_edge_real.py:HotTabs": "what one Agent and one Server counted is its alone",
    "agent/test_floods.py:Floods": SET,
    "browser/test_many.py:Many": SET,
    "browser/test_token.py:LoggedIn": SET,
    "browser/test_system.py:Looking": KILLED,
    "cli/test_sharding.py:ShardingTests": "shards are added and drained",
    "cli/test_stores.py:ClusterTests": "a node loses what it has",
    "cli/test_stores.py:StoreCase": "the store behind an address is exchanged",
    "cli/test_top.py:OnATerminal": SET,
    "compat/test_prometheus.py:Fleet": KILLED,
    "faults/full_disk.py:Full": "its disk is full",
    "faults/job.py:Job": KILLED,
    "faults/soak.py:Soak": KILLED,
    "faults/test_clocks.py:ClockCase": "its clock is the test's",
    "faults/test_clocks.py:Forgetting": "its clock is the test's",
    "faults/test_failover.py:ClusterJob": FAILED_OVER,
    "faults/test_failover.py:SentinelJob": FAILED_OVER,
    "faults/test_failover.py:MovesThatFailOver": FAILED_OVER,
    "faults/test_healing.py:HealingTests": KILLED,
    "faults/test_keyed_floods.py:KeyedFloods": "a flood fills what it has",
    "faults/test_short_lives.py:ShortLives": SET,
    "faults/test_stopping.py:Stopping": KILLED,
    "faults/test_strangers.py:Large": SET,
    "faults/test_who.py:Who": KILLED,
    "inputs/test_whole.py:Whole": KILLED,
    "server/prometheus/test_clients.py:PrometheusCase": KILLED,
    "server/test_schema.py:Described": "what is fuzzed is nothing for others",
    "shard/test_clocks.py:StoreClockTests": "its clock is the test's",
    "shard/test_cluster.py:ClusterTests": "a node that is in no Cluster",
    "shard/test_embedded.py:EmbeddedStoreTests": STARTED,
    "shard/test_failovers.py:FailoverCase": FAILED_OVER,
    "shard/test_prefix.py:SharedTests": "a Cluster in one test, beside stores that are borrowed",
    "shard/test_reshard.py:SentinelReshardTests": FAILED_OVER,
    "shard/test_sentinel.py:SentinelCase": FAILED_OVER,
    "shard/test_topologies.py:EmbeddedTests": STARTED,
    "stores.py:Shelf": "here they are borrowed",
    "test_demo.py:Replay": SET,
    "test_docs.py:Examples": "each page is one for a new Server",
    "test_plugins.py:PluginsOfTheWorkingDirectory": STARTED,
    "test_posting.py:Posting": SET,
    "test_secured.py:Secured": SET,
    "test_versions.py:Real": SET,
    "topologies.py:Cluster": "they know each other",
    "topologies.py:SentinelTrio": "they know each other",
}
"""Classes that start a store elsewhere than once for all their tests, and why."""


class Borrowing(SynchronousTestCase):
    shelf: Shelf

    @classmethod
    def setUpClass(cls) -> None:
        cls.shelf = Shelf()
        cls.addClassCleanup(cls.shelf.clear)

    def after(self, *commands: tuple[Any, ...]) -> tuple[Started, Started]:
        """A store for which `commands` were carried out, and the one that is had after it."""
        first = self.shelf.take()
        for command in commands:
            reply = first.store.call(*command)
            self.assertFalse(isinstance(reply, Exception), (command, reply))
        self.shelf.give_back(first)
        second = self.shelf.take()
        self.addCleanup(second.store.remove)
        return first, second

    def test_what_a_test_did_to_keys_scripts_counts_and_connections_is_undone(self) -> None:
        first, second = self.after(
            ("SET", "k", "v"),
            ("SELECT", "3"),
            ("SCRIPT", "LOAD", "return 1"),
            ("FUNCTION", "LOAD", "#!lua name=f\nserver.register_function('f', function() return 1 end)"),
            ("CLIENT", "PAUSE", "600000", "WRITE"),
        )
        self.assertIs(second.store, first.store)
        asked = [("DBSIZE",), ("SCRIPT", "EXISTS", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"), ("FUNCTION", "LIST")]
        self.assertEqual([second.store.call(*command) for command in asked], [0, [0], []])
        self.assertEqual(second.store.call("SET", "k", "v"), b"OK")  # nobody is held up
        self.assertNotIn(b"cmdstat_select", second.store.call("INFO", "commandstats"))

    def test_one_whose_settings_or_users_differ_or_that_is_a_replica_is_not_handed_on(self) -> None:
        for command in (
            ("CONFIG", "SET", "maxmemory", "100mb"),
            ("CONFIG", "SET", "requirepass", "secret"),
            ("ACL", "SETUSER", "somebody", "on", "nopass", "+@all"),
            ("REPLICAOF", "127.0.0.1", "1"),
        ):
            first, second = self.after(command)
            self.assertIsNot(second.store, first.store, command)
            self.assertFalse(first.store.is_running)

    def test_one_that_was_stopped_or_ended_is_not_handed_on(self) -> None:
        for spoil in (EphemeralValkey.pause, EphemeralValkey.kill, EphemeralValkey.remove):
            first = self.shelf.take()
            spoil(first.store)
            self.shelf.give_back(first)
            second = self.shelf.take()
            self.assertIsNot(second.store, first.store)
            self.assertFalse(first.store.is_running)
            self.shelf.give_back(second)

    def test_each_that_asks_meanwhile_has_his_own_and_only_one_that_is_started_alike_is_given(self) -> None:
        before = self.shelf.starts
        first, second, other = self.shelf.take(), self.shelf.take(), self.shelf.take(tcp=True)
        self.assertEqual(len({first.store.path, second.store.path, other.store.path}), 3)
        self.assertEqual((first.store.port, other.store.url[:8]), (0, "redis://"))
        for one, how in ((first, {}), (second, {}), (other, {"tcp": True})):
            self.shelf.give_back(one, **how)
        started = self.shelf.starts
        again = [self.shelf.take(), self.shelf.take(), self.shelf.take(tcp=True)]
        self.assertEqual({one.store.path for one in again}, {first.store.path, second.store.path, other.store.path})
        self.assertEqual(self.shelf.starts, started)
        self.assertLessEqual(started - before, 3)
        for one, how in zip(again, ({}, {}, {"tcp": True}), strict=True):
            self.shelf.give_back(one, **how)


class Habits(SynchronousTestCase):
    def test_whoever_starts_a_store_for_one_test_says_why(self) -> None:
        found = set()
        for path in TESTS.rglob("*.py"):
            text = path.read_text()
            if any(f"{name}(" in text for name in STARTS):
                found |= {f"{path.relative_to(TESTS)}:{name}" for name in starting(ast.parse(text))}
        self.assertEqual(found, OWN.keys())

    def test_it_sees_them(self) -> None:
        text = """
class Each:
    def setUp(self): self.store = EphemeralValkey(tcp=True)
class Once:
    @classmethod
    def setUpClass(cls): cls.services = Services()
class ByAnother:
    def start(self): return tests.services.Services()
class Borrowed:
    def setUp(self): self.store = borrow(self)
"""
        self.assertEqual(starting(ast.parse(text)), {"Each", "ByAnother"})


def starting(module: ast.Module) -> set[str]:
    """The classes that start a store, but for those that do so once for all their tests."""
    found = set()
    for kind in (node for node in module.body if isinstance(node, ast.ClassDef)):
        for part in kind.body:
            if not (isinstance(part, ast.FunctionDef) and part.name == "setUpClass"):
                called = (node.func for node in ast.walk(part) if isinstance(node, ast.Call))
                found |= {kind.name for one in called if getattr(one, "id", getattr(one, "attr", "")) in STARTS}
    return found
