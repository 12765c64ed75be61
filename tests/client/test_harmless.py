"""Never in the way: whatever befell the process, a record raises nothing, runs nobody's code, waits for nobody and writes nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.client import identity
from taba.client.harmless import acquire_within
from taba.client.producer import read_settings
from taba.names import check_client
from tests.client.cases import ROOT, ClientCase, both
from tests.patience import PATIENCE_SECONDS

# what a program does before the lines of a test: recording must find no ring, so that everything rare happens
BEGIN = """
import os, sys, signal, threading
from taba import client
client.start("harmless/1")
c, u, b = client.counter("c"), client.updown("u"), client.tab("b", "Buffer")
def record_all():
    c.inc(); u.inc(); u.dec(); b.record("text"); b.record([1, {"a": 2}]); c.record(2.0, time=5)
def clear():  # the rings of earlier steps, so that each step looks at as many
    for name in os.listdir("/dev/shm"):
        if name.startswith(f"taba.{os.environ['TABA_AGENT']}."):
            os.unlink(f"/dev/shm/{name}")
def drops():
    return client.stats()["dropped_by_reason"]
def stepped(handler, at, work):
    # a tracer calls the handler before the at-th line of Taba's, as a signal would between any two; whether `work` has so many
    seen = [0]
    def trace(frame, event, argument):
        if "taba" not in frame.f_code.co_filename or frame.f_code.co_name == "<lambda>":
            return None
        def line(frame, event, argument):
            seen[0] += 1
            if seen[0] == at:
                sys.settrace(None)
                handler()
            return line
        return line
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return seen[0] >= at
"""


@both
class HarmlessTests(ClientCase):
    def run_harmless(self, code: str, **environment: str) -> Any:
        return self.run_python(BEGIN + textwrap.dedent(code), **environment)

    def test_with_no_descriptor_left(self) -> None:
        self.run_harmless(
            """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            record_all()
            assert client.stats()["recorded"] == 0, client.stats()
            assert drops() == {"no_ring": 6}, drops()
            """
        )

    def test_with_a_few_descriptors_left(self) -> None:
        self.run_harmless(
            """
            import resource
            low = os.open("/dev/null", os.O_RDONLY)
            os.close(low)
            for more in range(5):
                resource.setrlimit(resource.RLIMIT_NOFILE, (low + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
                client.stop()
                client.start("harmless/{slot}")
                record_all()
            assert client.stats()["recorded"] + client.stats()["dropped"] == 5 * 6, client.stats()
            """
        )

    def test_with_a_log_that_raises_is_locked_and_full(self) -> None:
        self.run_harmless(
            """
            import logging
            class Filter(logging.Filter):
                def filter(self, record):
                    raise KeyError("the user's")
            logger = logging.getLogger("taba.client")
            handler = logging.StreamHandler()
            handler.addFilter(Filter())
            logger.addFilter(Filter())
            logger.addHandler(handler)
            held, done = threading.Event(), threading.Event()
            def hold():
                logging._acquireLock() if hasattr(logging, "_acquireLock") else logging._lock.acquire()
                handler.acquire()
                held.set()
                done.wait()
            threading.Thread(target=hold, daemon=True).start()
            held.wait()
            from taba import ring
            ring.SHM_DIRECTORY = "/nonexistent"
            record_all()
            assert drops() == {"no_ring": 6}, drops()
            os._exit(0)
            """
        )

    def test_with_standard_error_a_full_pipe(self) -> None:
        self.run_harmless(
            """
            import logging
            logging.basicConfig()
            read, write = os.pipe()
            os.set_blocking(write, False)
            try:
                while True:
                    os.write(write, b"x" * 4096)
            except BlockingIOError:
                pass
            os.set_blocking(write, True)
            os.dup2(write, 2)
            from taba import ring
            ring.SHM_DIRECTORY = "/nonexistent"
            record_all()
            assert drops() == {"no_ring": 6}, drops()
            os._exit(0)
            """
        )

    def test_no_module_is_imported_and_no_hook_of_imports_asked(self) -> None:
        self.run_harmless(
            """
            class Finder:
                def find_spec(self, *arguments):
                    raise SystemError("imported")
            client.stats()
            before = set(sys.modules)
            sys.meta_path.insert(0, Finder())
            __builtins__.__import__ = None
            record_all()
            from_now_on = set(sys.modules)
            assert from_now_on == before, from_now_on - before
            os._exit(0 if client.stats()["recorded"] == 6 else 7)
            """
        )

    def test_at_each_depth_below_the_limit_of_recursion(self) -> None:
        self.run_harmless(
            """
            failed = []
            def deep():
                try:
                    deep()
                except RecursionError:
                    pass
                try:
                    c.record(1.0)
                except RecursionError as error:
                    # where there is no stack for the call itself, Python says so before anything of Taba's runs
                    if error.__traceback__.tb_next is not None:
                        failed.append(error)
            sys.setrecursionlimit(200)
            for again in range(3):
                deep()
                client.stop()
                client.start("harmless/2")
            sys.setrecursionlimit(1000)
            assert not failed, failed
            record_all()
            assert client.stats()["recorded"] > 100, client.stats()
            assert set(drops()) <= {"exhausted", "no_ring", "stopped"}, drops()
            """
        )

    def test_with_each_allocation_failing(self) -> None:
        try:
            import _testcapi
        except ImportError:
            raise SkipTest("this Python has no _testcapi, which makes allocations fail") from None
        del _testcapi
        self.run_harmless(
            """
            import _testcapi
            outcomes = []
            for start in range(0, 400, 3):
                client.stop(); client.start("harmless/3")
                _testcapi.set_nomemory(start, start + 1)
                try:
                    c.record(1.0)
                except MemoryError as error:
                    _testcapi.remove_mem_hooks()
                    if error.__traceback__.tb_next is not None:  # else there was no memory for the call itself: no line of Taba's ran
                        outcomes.append((start, error))
                finally:
                    _testcapi.remove_mem_hooks()
            assert not outcomes, outcomes[:3]
            """
        )

    def test_while_the_interpreter_ends(self) -> None:
        done = self.run_ending(
            """
            import atexit
            class Last:
                def __init__(self, name): self.name = name
                def __del__(self):
                    record_all()
            last, sys.last_of_all = Last("main"), Last("sys")
            cycle = Last("cycle"); cycle.itself = cycle
            __builtins__.kept = Last("builtins")
            atexit.register(record_all)
            threading.Thread(target=lambda: threading.main_thread().join() or record_all()).start()
            """
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_thread_that_records_while_the_interpreter_ends(self) -> None:
        done = self.run_ending(
            """
            def go_on():
                while True: record_all()
            threading.Thread(target=go_on, daemon=True).start()
            """
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def run_ending(self, code: str) -> Any:
        settings = {**os.environ, **self.environment, "PYTHONPATH": ROOT, "TABA_PURE": "" if self.accelerated else "1"}
        program = BEGIN + textwrap.dedent(code)
        return subprocess.run(
            [sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )

    @pytest.mark.real
    def test_stop_start_fork_and_record_in_a_signal_handler_at_each_step_of_a_first_record(self) -> None:
        out = self.run_harmless(
            """
            import json, tempfile
            def stop(): client.stop()
            def restart(): client.stop(); client.start("harmless/{slot}")
            def rename(): client.start("harmless/other")
            def again(): record_all()
            def fork():
                child = os.fork()
                if child == 0:
                    children.append(1)
                else:
                    os.waitpid(child, 0)
            children, steps = [], 0
            def work(): c.inc(); u.inc(); b.record("text")
            for handler in (stop, restart, rename, again, fork):
                client.stop(); client.start("harmless/{slot}"); clear()
                at = 1
                while stepped(handler, at, work):
                    steps += 1
                    before = client.stats()["recorded"]
                    record_all()
                    assert handler is not stop or client.stats()["recorded"] == before, at  # what was stopped stays so
                    if children:
                        assert client.stats()["recorded"] + client.stats()["dropped"] <= 9 + 3, client.stats()
                        os._exit(0)
                    client.stop(); client.start("harmless/{slot}"); clear()
                    at += 1 if at < 40 else 7
                assert at > 10, (handler, at)
            print(steps)
            """
        )
        self.assertGreater(int(out.split()[-1]), 100)

    def test_what_a_signal_handler_does_while_a_tab_is_said_anew_ends_no_ring_under_it_and_loses_no_event(self) -> None:
        # as above: the Tab has its place, and gets another one, with what is said of it by now
        self.run_harmless(
            """
            def stop(): client.stop()
            def rename(): client.start(f"harmless/{len(steps)}")
            def again(): record_all()
            def other(): client.counter("c", unit="other"); client.counter(f"d{len(steps)}").inc()
            def retire():  # as an Agent that found the ring dead
                from taba import ring
                with open(f"/dev/shm/{client.stats()['ring']}", "r+b") as file:
                    file.seek(ring.RETIRED_OFFSET)
                    file.write(b"\\1")
                c.inc()
            steps = []
            def say_anew(): client.counter("c", unit=f"said {len(steps)}")
            for handler in (stop, rename, again, other, retire):
                client.stop(); client.start("harmless/0"); clear()
                at = 1
                while True:
                    record_all()
                    steps.append(handler)
                    came = stepped(handler, at, say_anew)
                    before = client.stats()
                    record_all()
                    after = client.stats()
                    if handler is retire:  # of the ring before nobody knows what was read
                        assert set(drops()) <= {"stopped", "reentrant", "unknown"}, (handler, at, after)
                        assert after["recorded"] == before["recorded"] + 6, (handler, at, before, after)
                    elif handler is stop:
                        assert after["dropped"] == before["dropped"] + 6 or not came, (handler, at, before, after)
                    else:
                        assert after["recorded"] == before["recorded"] + 6, (handler, at, before, after)
                        assert after["dropped"] == before["dropped"], (handler, at, after)
                    client.stop(); client.start("harmless/0"); clear()
                    if not came:
                        break
                    at += 1
                assert at > 10, (handler, at)
            """
        )

    def test_an_exception_of_a_signal_handler_passes_whatever_its_class(self) -> None:
        self.run_harmless(
            """
            raised = 0
            def traced(at, error):
                seen = [0]
                def handler(number, frame):
                    raise error
                def trace(frame, event, argument):
                    if "taba" not in frame.f_code.co_filename:
                        return None
                    def line(frame, event, argument):
                        seen[0] += 1
                        if seen[0] == at:
                            sys.settrace(None)
                            signal.raise_signal(signal.SIGUSR1)
                        return line
                    return line
                signal.signal(signal.SIGUSR1, handler)
                sys.settrace(trace)
                try:
                    c.inc()
                    return False, seen[0] < at
                except type(error):
                    error.__traceback__ = None  # which would hold what was being made
                    return True, False
                finally:
                    sys.settrace(None)
            clear()
            # each has its own places: together they try every seventh. Where a handler raises just before a file is closed, a slot stays
            # taken, and whoever comes passes it over in 20 lines more: steps of as many would come to that place again and again
            classes = (TimeoutError("the user's"), ValueError("the user's"), KeyError("the user's"), KeyboardInterrupt())
            for place, error in enumerate(classes):
                client.stop(); client.start("harmless/{slot}"); clear()
                at = 1 + 7 * place
                while True:
                    passed, ended = traced(at, error)
                    if ended:
                        break
                    assert passed, (at, error)
                    raised += 1
                    client.stop(); client.start("harmless/{slot}"); clear()
                    at += 28
            assert raised > 5, raised
            record_all()
            """
        )

    def test_a_thread_that_finds_a_ring_being_made_goes_on_before_it_is_made_and_its_drops_count(self) -> None:
        self.run_harmless(
            """
            from taba.client import producer
            making, go_on, make = threading.Event(), threading.Event(), producer.make_segment
            def make_slowly(*arguments, **more):
                making.set()
                assert go_on.wait(60)
                return make(*arguments, **more)
            producer.make_segment = make_slowly
            first = threading.Thread(target=c.inc)
            first.start()
            assert making.wait(60)
            for record, value in ((c.inc, 1), (b.record, "text"), (b.record, object()), (lambda _: c.inc(time="x"), 0), (u.inc, 7)):
                other = threading.Thread(target=record, args=(value,))
                other.start()
                other.join(60)  # whatever becomes of the first
                assert not other.is_alive()
            go_on.set()
            first.join(60)
            assert not first.is_alive()
            record_all()
            counts = client.stats()
            dropped = counts["dropped_by_reason"]
            assert dropped["bad_time"] == 1 and not set(dropped) - {"reentrant", "value_type", "bad_time"}, counts
            assert sum(dropped.values()) in (4, 5), counts  # an UpDown's is dropped too, or owed
            assert counts["recorded"] + sum(dropped.values()) == 12, counts
            from tests.client.reading import Reader, rings
            (name,) = rings(os.environ["TABA_AGENT"])
            assert Reader(name).header.drops == dropped
            """
        )

    def test_a_signal_handler_that_raises_while_a_lock_is_taken_leaves_it_free(self) -> None:
        self.run_harmless(
            """
            class Away(Exception):
                pass
            def raises(*_):
                raise Away
            signal.signal(signal.SIGALRM, raises)
            caught = 0
            for turn in range(2000):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5 + turn % 40 * 1e-6)
                    u.inc(); b.record("text"); b.record(object())
                    while True:
                        u.inc()
                except Away:
                    caught += 1
            assert caught == 2000
            before = client.stats()
            other = threading.Thread(target=record_all)
            other.start()
            other.join(60)
            assert not other.is_alive()
            after = client.stats()
            assert after["dropped_by_reason"].get("reentrant") == before["dropped_by_reason"].get("reentrant"), (before, after)
            """,
            TABA_RING_BYTES="65536",
        )

    def test_a_child_of_c_code_counts_its_drops_as_its_own_and_waits_for_no_lock_of_its_parent(self) -> None:
        out = self.run_harmless(
            """
            import ctypes
            record_all()
            b.record(object())
            held = threading.Event()
            def hold():
                with client._process.producer._lock:
                    held.set()
                    threading.Event().wait()
            threading.Thread(target=hold, daemon=True).start()
            held.wait()
            child = ctypes.PyDLL(None).fork()
            if child == 0:
                b.record(object()); b.record({1, 2})
                c.inc(time="x")
                assert client.stats()["recorded"] == 0 and drops() == {"value_type": 2, "bad_time": 1}, client.stats()
                record_all()
                assert client.stats()["recorded"] == 6 and drops() == {"value_type": 2, "bad_time": 1}, client.stats()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            from tests.client.reading import Reader, rings
            for name in rings(os.environ["TABA_AGENT"]):
                print(sorted(Reader(name).header.drops.items()), flush=True)
            os._exit(0)
            """
        )
        self.assertEqual(sorted(out.splitlines()), ["[('bad_time', 1), ('value_type', 2)]", "[('value_type', 1)]"])

    def test_a_child_of_c_code_that_never_recorded_leaves_its_parent_its_slot(self) -> None:
        self.run_harmless(
            """
            import ctypes
            client.start("harmless/{slot}")
            c.inc()
            slot = client.stats()["client"]
            held = client._process.producer._slot._path(client._process.producer._slot.number)
            child = ctypes.PyDLL(None).fork()
            if child == 0:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert os.path.exists(held), held
            """
        )


class LockTests(SynchronousTestCase):
    """What holds a lock too long is not waited for; no clock that can be set says how long that is."""

    class Held:
        """A lock that is free after so many looks; a wait of its own might go by the wall clock."""

        def __init__(self, looks: int) -> None:
            self.looks = looks

        def acquire(self, blocking: bool) -> bool:
            assert blocking is False
            self.looks -= 1
            return self.looks < 0

    def test_a_lock_that_is_free_soon_enough_is_taken(self) -> None:
        for looks in (0, 1, 5):
            self.assertTrue(acquire_within(self.Held(looks), 60.0))

    def test_one_that_is_not_is_left(self) -> None:
        self.assertFalse(acquire_within(self.Held(1_000_000), 0.01))
        self.assertFalse(acquire_within(self.Held(1), 0.0))

    def test_nothing_of_the_client_or_the_command_waits_in_another_way(self) -> None:
        timed = re.compile(r"acquire\((?:timeout|True)|threading\.(?:Event|Condition|Semaphore)|(?:join|get)\(timeout")
        for room in ("client", "cli", "query"):
            for path in Path(ROOT, "taba", room).glob("*.py"):
                self.assertEqual(timed.findall(path.read_text()), [], path)


class DefaultIdTests(SynchronousTestCase):
    def default_of(self, host: str, arguments: Any) -> Any:
        with mock.patch("os.uname", return_value=mock.Mock(nodename=host)), mock.patch.object(sys, "argv", arguments):
            settings = read_settings(None, {})
            return check_client(identity.expand(settings.client, {}, lambda: identity.MAX_SLOTS))

    def test_a_host_of_any_name_and_a_program_of_any_name_have_a_valid_default(self) -> None:
        for host, arguments, id in (
            ("taba.example.com", ["web.py"], "taba_example.com:web/10000"),
            ("taba.taba.taba", ["web.py"], "taba_taba.taba:web/10000"),
            ("_taba.x", ["web.py"], "taba_x:web/10000"),
            ("", ["/srv/web/__main__.py"], "host:web/10000"),
            ("日本", ["日本.py"], "host:python/10000"),
            ("h" * 300, ["x" * 300], "h" * 64 + ":" + "x" * 100 + "/10000"),
            ("h", ["-c"], "h:python/10000"),
            ("h", ["-m"], "h:python/10000"),
            ("h", ["__main__.py"], "h:python/10000"),
            ("h", ["__main__"], "h:main__/10000"),
            ("h", [".py"], "h:python/10000"),
            ("h", ["taba.web"], "h:taba_web/10000"),
            ("h", ["\udcff.py"], "h:python/10000"),
            ("h", [], "h:python/10000"),
            ("h", [None], "h:python/10000"),
            ("h", None, "h:python/10000"),
            ("h", ["a b\n"], "h:a_b_/10000"),
        ):
            self.assertEqual(self.default_of(host, arguments), id)

    @given(st.text(max_size=300), st.none() | st.lists(st.none() | st.binary(max_size=9) | st.text(max_size=300), max_size=2))
    def test_the_default_never_raises(self, host: str, arguments: list[str]) -> None:
        self.default_of(host, arguments)
