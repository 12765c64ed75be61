"""`taba shards`, `taba reshard`, `taba check` as processes: a Server folds and answers while its store grows, shrinks and is mended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.bounds import KiB
from taba.cli.sharding import _found_lines
from taba.names import bucket_of
from taba.query import QueryError
from taba.shard.buckets import owner_key, prefix_of
from tests.patience import PATIENCE_SECONDS, until
from tests.services import ROOT, Services
from tests.stores import borrow
from tests.valkey import EphemeralValkey

BUCKETS = 32
TABS = 60


class Load:
    """Posts events to a Server without end, each once; and asks it without end, and keeps every answer that is wrong."""

    def __init__(self, services: Services):
        self.services = services
        self.sent = 0
        self.asked = 0
        self.wrong: list[str] = []
        self._is_stopped = False
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._ask)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        while self.sent < 3 and not self.wrong:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._is_stopped:
            events = [{"tab": f"t{n}", "type": "TotalsCounter", "value": 1.0} for n in range(TABS)]
            number = self.sent
            for _ in range(50):
                try:
                    self.services.query.post_events("c", events, key=f"lot-{number}")  # type: ignore[arg-type]
                    self.sent += 1
                    break
                except QueryError as error:
                    last = error  # sent again under the same key: an Agent would
                    time.sleep(0.02)
            else:
                self.wrong.append(f"sending: {last}")
                return

    def _ask(self) -> None:
        before = 0
        while not self._is_stopped:
            try:
                answer = self.services.query.aggregates()
            except QueryError as error:
                self.wrong.append(f"asking: {error}")
                return
            counts = [content["count"] for content in answer.values()]
            if self.asked > 5 and (len(counts) < TABS or min(counts) < before):
                self.wrong.append(f"a hole: {len(counts)} Tabs, {min(counts)} after {before}")
            before = min(counts, default=0)
            self.asked += 1


class Found(SynchronousTestCase):
    def test_what_is_left_is_said_whether_it_was_there_at_first_or_not(self) -> None:
        for wrong, left, lines in (
            ([], [], ["all maps and owner keys agree"]),
            (["a", "b"], [], ["a: mended", "b: mended"]),
            (["a", "b"], ["b"], ["a: mended", "b"]),
            (["a"], ["c"], ["a: mended", "c"]),
            (["a", "a"], ["a", "c", "c"], ["a", "c"]),
        ):
            self.assertEqual(_found_lines(wrong, left), lines)


class ShardingTests(TestCase):
    timeout = 300

    def valkey(self) -> EphemeralValkey:
        valkey = borrow(self, tcp=True, appendfsync="no")
        return valkey

    def prepare(self) -> tuple[Services, EphemeralValkey]:
        services, first = Services(), self.valkey()
        self.first = first
        self.addCleanup(services.stop)
        services.start_server("--buckets", str(BUCKETS), store=first.url)
        return services, first

    def taba(self, services: Services, *arguments: str, code: int = 0) -> str:
        done = services.taba(*arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def held(self, services: Services) -> dict[str, int]:
        shards: list[dict[str, Any]] = json.loads(self.taba(services, "shards", "--json"))
        return {shard["name"]: shard["buckets"] for shard in shards}

    @pytest.mark.real
    def test_a_store_grows_to_four_shards_and_shrinks_to_two_while_a_server_works(self) -> None:
        services, first = self.prepare()
        new = [self.valkey() for _ in range(3)]
        with Load(services) as load:
            self.assertEqual(self.held(services), {"s1": BUCKETS})
            shown = self.taba(services, "reshard", "--add", new[0].url, "--dry-run")
            self.assertEqual(shown, f"{BUCKETS // 2} buckets move from s1 to s2\n")
            said = self.taba(services, "reshard", *(part for valkey in new for part in ("--add", valkey.url)))
            self.assertIn(f"{BUCKETS * 3 // 4} moved", said)
            self.assertEqual(self.held(services), {f"s{n}": BUCKETS // 4 for n in (1, 2, 3, 4)})
            self.assertEqual(self.taba(services, "reshard", "--add", new[1].url), "nothing was to be moved\n")
            self.taba(services, "reshard", "--drain", "s1")
            self.taba(services, "reshard", "--drain", "s3", "--json")
            self.assertEqual(self.held(services), {"s2": BUCKETS // 2, "s4": BUCKETS // 2})
            self.assertIn("agree", self.taba(services, "check"))
        self.assertEqual(load.wrong, [])
        self.assertGreater(load.asked, 5)
        answer = services.query.aggregates()
        self.assertEqual({name: content["count"] for name, content in answer.items()}, {f"t{n}": load.sent for n in range(TABS)})
        self.assertIn("s2: redis://127.0.0.1:", self.taba(services, "shards"))
        self.assertEqual(first.ask("EXISTS", *(f"taba:{{{bucket}}}:states" for bucket in range(BUCKETS))), b":0\r\n")

    @pytest.mark.real
    def test_one_that_is_killed_or_interrupted_is_repeated(self) -> None:
        services, _ = self.prepare()
        self.weigh_down()
        new = self.valkey()
        with Load(services) as load:
            for number in (signal.SIGKILL, signal.SIGINT):
                before = self.under_way()
                process = subprocess.Popen(
                    [sys.executable, "-m", "taba.cli.main", "reshard", "--add", new.url, "--rate", "0.02"],
                    env=services.environ,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # whoever started these tests in the background has SIGINT ignored, in all that they start
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                )
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not (begun := self.under_way() - before) and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.005)
                self.assertTrue(begun)
                self.assertIsNone(process.poll())  # at its rate, what is to be moved takes minutes
                os.kill(process.pid, number)
                self.assertEqual(process.wait(PATIENCE_SECONDS), -9 if number == signal.SIGKILL else 130)
                if number == signal.SIGINT:
                    self.assertEqual(self.under_way() - before, set())
            self.taba(services, "reshard", "--add", new.url)
            self.assertEqual(self.held(services), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
        self.assertEqual(load.wrong, [])
        answer = services.query.aggregates()
        self.assertEqual({content["count"] for content in answer.values()}, {load.sent})

    def weigh_down(self) -> None:
        """Give each bucket so much that to move half of them takes minutes at the rates used here."""
        for bucket in range(BUCKETS):
            self.first.ask("SET", prefix_of(bucket) + b"ballast", b"x" * 256 * KiB)

    def under_way(self) -> set[bytes]:
        """What the owner keys say that are on their way."""
        return {said for bucket in range(BUCKETS) if b"moving" in (said := self.first.ask("GET", owner_key(bucket))) or b"sealed" in said}

    @pytest.mark.real
    def test_one_that_is_stopped_is_overtaken_and_harms_nothing_when_it_wakes(self) -> None:
        services, _ = self.prepare()
        new = self.valkey()
        with Load(services) as load:
            process = subprocess.Popen(
                [sys.executable, "-m", "taba.cli.main", "reshard", "--add", new.url, "--rate", "0.02"],
                env=services.environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                until(self.under_way, "no move is under way")
                process.send_signal(signal.SIGSTOP)
                self.taba(services, "reshard", "--add", new.url)
                self.assertEqual(self.held(services), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
                process.send_signal(signal.SIGCONT)
                self.assertEqual(process.wait(PATIENCE_SECONDS), 0)  # it finds nothing left to do
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self.assertEqual(self.held(services), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
            self.assertIn("agree", self.taba(services, "check"))
        self.assertEqual(load.wrong, [])
        self.assertEqual({content["count"] for content in services.query.aggregates().values()}, {load.sent})

    @pytest.mark.real
    def test_buckets_that_are_used_most_are_spread_over_the_shards(self) -> None:
        services, _ = self.prepare()
        self.taba(services, "reshard", "--add", self.valkey().url)
        names = [next(name for n in range(10_000) if bucket_of(name := f"x{n}", BUCKETS) == bucket) for bucket in range(4)]
        self.assertEqual(self.held(services), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
        is_stopped = threading.Event()

        def use() -> None:
            while not is_stopped.is_set():
                events = [{"tab": name, "type": "TotalsCounter", "value": 1.0} for name in names]
                services.query.post_events("c", events)  # type: ignore[arg-type]

        using = threading.Thread(target=use)
        using.start()
        try:
            self.assertIn("moved", self.taba(services, "reshard", "--rebalance", "--by", "ops"))
        finally:
            is_stopped.set()
            using.join()
        moved = [bucket for bucket in range(4) if b"moved" in self.first.ask("GET", owner_key(bucket))]
        self.assertEqual(len(moved), 2)

    @pytest.mark.real
    def test_disagreements_are_found_and_mended_only_on_request(self) -> None:
        services, first = self.prepare()
        new = self.valkey()
        self.taba(services, "reshard", "--add", new.url)
        first.ask("SET", owner_key(31), "open:1:s1")  # an overlap: the newer one is right
        first.ask("DEL", owner_key(0))  # a gap
        said = self.taba(services, "check", code=1)
        self.assertIn("bucket 31 is open on s1 and s2: taba check --repair\n", said)
        self.assertIn("bucket 0 is open nowhere; by the map it belongs to s1: taba check --repair\n", said)
        self.assertIn(b"open:1:s1", first.ask("GET", owner_key(31)))
        self.assertIn("mended", self.taba(services, "check", "--repair"))
        self.assertIn("agree", self.taba(services, "check"))
        self.assertIn(b"moved:3:s2", first.ask("GET", owner_key(31)))
        self.assertIn(b"open:2:s1", first.ask("GET", owner_key(0)))

    @pytest.mark.real
    def test_what_is_wrong_is_said_in_one_line(self) -> None:
        services, first = self.prepare()
        for arguments, says in (
            (["reshard"], "takes one of"),
            (["reshard", "--add", "x", "--abort"], "takes one of"),
            (["reshard", "--drain", "s1", "--by", "bytes"], "--by goes with"),
            (["reshard", "--add", "http://x"], "--add"),
            (["reshard", "--drain", "s9"], "s9"),
            (["reshard", "--drain", "s1"], "only one"),
            (["reshard", "--rebalance", "--store", "embedded:"], "address of a store that runs"),
            (["check", "--store", "redis://127.0.0.1:1"], "127.0.0.1:1"),
        ):
            done = services.taba(*arguments)
            self.assertGreater(done.returncode, 0, arguments)
            self.assertIn(says, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(self.taba(services, "reshard", "--abort"), "nothing was to be moved\n")
        self.assertEqual(self.taba(services, "reshard", "--rebalance", "--store", first.url), "nothing was to be moved\n")
