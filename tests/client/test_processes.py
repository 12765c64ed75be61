"""Forks, daemons, exec, slots: each process has a ring of its own, and nothing holds another's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from typing import Any

from twisted.trial.unittest import SkipTest

from taba import ring
from taba.client import identity
from tests.client.cases import ROOT, ClientCase, both
from tests.client.reading import Reader, rings
from tests.needs import needs_program


@both
class ProcessTests(ClientCase):
    def headers(self) -> Any:
        found = {}
        for name in rings(self.agent):
            reader = Reader(name)
            found[name] = (reader.header, reader.drain(release=False), reader.is_held())
            reader.close()
        return found

    def test_a_forked_child_has_its_own_ring_and_does_not_hold_its_parents(self) -> None:
        out = self.run_python(
            """
            import os, sys, time
            from taba import client
            from tests.client.reading import Reader
            c, b = client.counter("c"), client.tab("b", "Buffer")
            c.inc(); b.record("parent")
            first = client.stats()["ring"]
            ready, parent_gone = os.pipe(), os.pipe()
            if os.fork() == 0:
                assert client.stats()["recorded"] == 0 and client.stats()["ring"] is None
                c.inc(2); b.record("child")
                assert client.stats()["ring"] != first and client.stats()["recorded"] == 2
                os.write(ready[1], b"x")
                os.close(parent_gone[1])
                os.read(parent_gone[0], 1)
                reader = Reader(first)
                deadline = time.monotonic() + 300
                while reader.is_held() and time.monotonic() < deadline:
                    time.sleep(0.01)
                print("held" if reader.is_held() else "free", flush=True)
                os._exit(0)
            os.read(ready[0], 1)
            c.inc(3)
            assert client.stats()["ring"] == first and client.stats()["recorded"] == 3
            os._exit(0)
            """
        )
        self.assertEqual(out, "free\n")
        found = sorted([event.value for event in events if event.tab == "c"] for _, events, _ in self.headers().values())
        self.assertEqual(found, [[1.0, 3.0], [2.0]])

    def test_a_child_forked_while_a_thread_makes_a_ring_or_takes_a_slot_holds_neither(self) -> None:
        self.run_python(
            """
            import os, threading
            from taba import client
            from taba.client import identity, segment
            client.start("w/{slot}")
            is_made, may_go_on = threading.Event(), threading.Event()
            def stop_after(memory):
                is_made.set()
                assert may_go_on.wait(300)
                return memory
            def held():
                with open("/proc/self/maps") as maps:
                    mapped = [line.split()[-1] for line in maps if "/dev/shm/taba" in line]
                return mapped + [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                                 if os.path.exists(f"/proc/self/fd/{fd}") and "/dev/shm/taba" in os.readlink(f"/proc/self/fd/{fd}")]
            make, lock = segment.Segment, identity._lock
            for is_slot in (True, False):
                if is_slot:
                    identity._lock = lambda path, make=True: stop_after(lock(path, make))
                else:
                    segment.Segment = lambda *given: stop_after(make(*given))
                recording = threading.Thread(target=client.counter("c").inc)
                recording.start()
                assert is_made.wait(300)
                if (child := os.fork()) == 0:
                    try:
                        left, identity._lock, segment.Segment = held(), lock, make
                        client.counter("c").inc(2)
                        os._exit(1 if left or client.stats()["recorded"] != 1 else 0)
                    except BaseException:
                        os._exit(2)
                may_go_on.set()
                recording.join()
                assert os.waitpid(child, 0)[1] == 0
                assert client.stats()["recorded"] == 2 - is_slot and held(), client.stats()
                client.stop()
                identity._lock, segment.Segment = lock, make
                is_made.clear(), may_go_on.clear()
                client.start("w/{slot}")
            """
        )

    def test_workers_forked_from_a_preloading_parent_that_recorded_lose_nothing(self) -> None:
        self.run_python(
            """
            import os, threading
            from taba import client
            client.start("w/{slot}")
            tabs = [client.counter(f"c{i}") for i in range(20)]
            for tab in tabs: tab.inc()
            def work():
                for i in range(500):
                    tabs[i % 20].inc()
            children = []
            for _ in range(4):
                child = os.fork()
                if child == 0:
                    threads = [threading.Thread(target=work) for _ in range(4)]
                    [t.start() for t in threads]; [t.join() for t in threads]
                    grandchild = os.fork()
                    if grandchild == 0:
                        work()
                        os._exit(0)
                    assert os.waitpid(grandchild, 0)[1] == 0
                    os._exit(0)
                children.append(child)
            for tab in tabs: tab.inc()
            assert all(os.waitpid(child, 0)[1] == 0 for child in children)
            """
        )
        self.assertEqual(len(self.events(release=False)), 40 + 4 * 2000 + 4 * 500)
        self.assertEqual(len(rings(self.agent)), 9)

    def test_multiprocessing_in_each_way_to_start(self) -> None:
        path = os.path.join(self.mktemp_folder(), "program.py")
        with open(path, "w") as program:
            program.write(
                "import multiprocessing as m\n"
                "from taba import client\n"
                "def work(n):\n"
                "    client.counter('c').inc(n)\n"
                "if __name__ == '__main__':\n"
                "    client.counter('c').inc()\n"
                "    for method in ('fork', 'spawn', 'forkserver'):\n"
                "        with m.get_context(method).Pool(2) as pool:\n"
                "            pool.map(work, range(100, 104))\n"
            )
        self.run_python("import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')", path)
        values = sorted(event.value for event in self.events())
        self.assertEqual(values, sorted([1.0, *3 * [100.0, 101.0, 102.0, 103.0]]))

    def mktemp_folder(self) -> Any:
        folder = self.mktemp()
        os.makedirs(folder)
        return folder

    def test_a_daemon_that_closed_all_descriptors_records_on_and_harms_no_other_file(self) -> None:
        out = self.run_python(
            """
            import os, sys, json
            from taba import client
            from tests.client.reading import Reader
            client.start("d/{slot}")
            c = client.counter("c")
            c.inc()
            name = client.stats()["ring"]
            out = os.dup2(1, 200)
            os.closerange(3, 200)
            os.closerange(0, 3)
            others = [os.open("/dev/null", os.O_RDWR) for _ in range(20)]
            c.inc()
            reader = Reader(name)
            held = reader.is_held()
            reader.close()
            def alive():
                return all(os.path.samestat(os.fstat(fd), os.stat("/dev/null")) for fd in others)
            results = [held, alive()]
            child = os.fork()
            if child == 0:
                c.inc()
                os._exit(0 if alive() else 7)
            results.append(os.waitpid(child, 0)[1])
            client.stop()
            client.start("d/2")
            c.inc()
            results.append(alive())
            os.write(200, json.dumps([results, client.stats()["recorded"]]).encode())
            os._exit(0)
            """
        )
        self.assertEqual(json.loads(out), [[True, True, 0, True], 3])
        self.assertEqual(len(self.events()), 4)
        self.assertFalse(any(held for _, _, held in self.headers().values()))

    def test_after_exec_the_old_ring_is_free_and_the_program_has_a_new_one(self) -> None:
        self.run_python(
            """
            import os, sys
            from taba import client
            client.counter("c").inc()
            os.execv(sys.executable, [sys.executable, "-c", "from taba import client; client.counter('c').inc(2); input()"])
            """,
            prefix=[sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:], input=b'x').returncode)"],
        )
        self.assertEqual(sorted(event.value for event in self.events(release=False)), [1.0, 2.0])
        self.assertFalse(any(held for _, _, held in self.headers().values()))

    def test_a_child_forked_by_c_code_makes_its_own_ring(self) -> None:
        self.run_python(
            """
            import ctypes, os
            from taba import client
            c = client.counter("c")
            c.inc()
            child = ctypes.PyDLL(None).fork()
            c.inc(2)
            if child == 0:
                c.inc(3)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            """
        )
        found = sorted([event.value for event in events] for _, events, _ in self.headers().values())
        self.assertEqual(found, [[1.0, 2.0], [2.0, 3.0]])

    def test_a_killed_process_leaves_whole_records(self) -> None:
        self.run_python(
            """
            import os, signal
            from taba import client
            c = client.counter("c")
            child = os.fork()
            if child == 0:
                for i in range(1000):
                    c.inc(i)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
            """
        )
        self.assertEqual([event.value for event in self.events(release=False)], [float(i) for i in range(1000)])
        self.assertFalse(any(held for _, _, held in self.headers().values()))

    def test_interpreters_with_a_gil_of_their_own_have_rings_of_their_own(self) -> None:
        if sys.version_info < (3, 13):
            raise SkipTest("3.12 itself does not survive two interpreters that import hashlib; before it they share one GIL")
        self.run_python(
            """
            import threading
            import _interpreters as interpreters
            from taba import client
            client.counter("c").inc()
            code = (
                "from taba import client\\nc = client.counter('c')\\nfor i in range(1000): c.inc()\\n"
                "assert client.stats()['recorded'] == 1000\\n"
            )
            ids = [interpreters.create() for _ in range(2)]
            threads = [threading.Thread(target=interpreters.run_string, args=(id, code)) for id in ids]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            [interpreters.destroy(id) for id in ids]
            client.counter("c").inc()
            """
        )
        found = sorted(len(events) for _, events, _ in self.headers().values())
        self.assertEqual(found, [2, 1000, 1000])

    def test_no_thread_no_process_and_no_resource_tracker(self) -> None:
        self.run_python(
            """
            import os, sys, threading
            from taba import client
            client.counter("c").inc()
            client.tab("b", "Buffer").record("x")
            assert threading.active_count() == 1
            assert len(os.listdir("/proc/self/task")) == 1
            assert not open(f"/proc/self/task/{os.getpid()}/children").read()
            assert not any(name.startswith("multiprocessing") for name in sys.modules)
            """
        )
        self.assertEqual(len(self.events()), 2)

    def test_it_imports_nothing_but_the_standard_library(self) -> None:
        out = self.run_python(
            """
            import sys
            from taba import client
            client.counter("c").inc()
            names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
            print(*sorted(name for name in names if not name.startswith("__")))
            """,
            prefix=[
                sys.executable,
                "-S",
                "-c",
                "import subprocess, sys; sys.exit(subprocess.run([sys.argv[1], '-S', *sys.argv[2:]]).returncode)",
            ],
        )
        self.assertEqual(out.split(), ["taba"])

    def test_recording_makes_no_system_call(self) -> None:
        needs_program("strace")
        if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
            raise SkipTest("strace may not trace here")
        path = os.path.join(self.mktemp_folder(), "calls")
        self.run_python(
            """
            import os
            from taba import client
            c, p, b = client.counter("c"), client.percentile("p"), client.tab("b", "Buffer")
            for tab in (c, p, b):
                tab.record(1.0)
            records = range(33_000)
            os.path.exists("/begin-of-the-records")
            for _ in records:
                c.inc()
                p.observe(2.5)
                b.record("text")
            for i in range(1000):
                b.record(["x", 1])
            os.path.exists("/end-of-the-records")
            """,
            prefix=["strace", "-f", "-o", path],
            TABA_RING_BYTES=str(8 << 20),
        )
        with open(path) as calls:
            lines = calls.read().splitlines()
        begin = next(i for i, line in enumerate(lines) if "/begin-of-the-records" in line)
        end = next(i for i, line in enumerate(lines) if "/end-of-the-records" in line)
        between = [line for line in lines[begin + 1 : end] if not any(word in line for word in ("mmap(", "munmap(", "brk("))]
        self.assertEqual(between, [])  # Python's own allocator may ask for memory; nothing else
        self.assertLessEqual(end - begin, 4)
        self.assertEqual(len(self.events()), 100_003)


@both
class SlotTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        del self.environment["TABA_CLIENT_ID"]
        self.name = f"program-{self.agent}"

    def worker(self) -> Any:
        code = (
            "import sys\nfrom taba import client\nsys.argv[0] = sys.argv[1]\nclient.counter('c').inc()\n"
            "print(client.stats()['client'], flush=True)\ninput()\n"
        )
        settings = {**os.environ, **self.environment, "PYTHONPATH": ROOT, "TABA_PURE": "" if self.accelerated else "1"}
        settings.pop("TABA_CLIENT_ID", None)
        process = subprocess.Popen(
            [sys.executable, "-c", code, self.name], env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(self.end, process)
        assert process.stdout is not None
        client = process.stdout.readline().strip()
        self.assertTrue(client.startswith(f"{identity.host()}:{self.name}/"), client)
        return process, int(client.rpartition("/")[2])

    def end(self, process: Any, kill: Any = False) -> None:
        if process.poll() is None:
            if kill:
                process.kill()
            else:
                process.stdin.write("\n")
                process.stdin.close()
            process.wait(30)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()

    def slot_files(self) -> Any:
        digest = hashlib.blake2b(f"{identity.host()}\0{self.name}\0{os.geteuid()}".encode(), digest_size=8).hexdigest()
        return [name for name in os.listdir(ring.SHM_DIRECTORY) if name.startswith(f"taba-slot.{digest}.")]

    def test_processes_have_the_lowest_free_numbers_and_get_them_again_after_a_restart(self) -> None:
        before = set(self.slot_files())
        workers = [self.worker() for _ in range(3)]
        self.assertEqual([slot for _, slot in workers], [0, 1, 2])
        self.end(workers[1][0], kill=True)
        self.end(workers[0][0])
        again = [self.worker() for _ in range(3)]
        self.assertEqual([slot for _, slot in again], [0, 1, 3])
        self.end(again[2][0], kill=True)
        for process, _ in [*again[:2], workers[2]]:
            self.end(process)
        self.assertEqual(set(self.slot_files()) - before, set())

    def test_forked_workers_have_numbers_of_their_own(self) -> None:
        out = self.run_python(
            """
            import os, sys
            from taba import client
            sys.argv[0] = sys.argv[1]
            c = client.counter("c")
            children = []
            for _ in range(3):
                ready, go = os.pipe(), os.pipe()
                child = os.fork()
                if child == 0:
                    c.inc()
                    print(client.stats()["client"], flush=True)
                    os.write(ready[1], b"x")
                    os.close(go[1])
                    os.read(go[0], 1)
                    os._exit(0)
                os.read(ready[0], 1)
                children.append((child, go))
            c.inc()
            print(client.stats()["client"], flush=True)
            os.write(children[0][1][1], b"x")
            os.waitpid(children[0][0], 0)
            child = os.fork()
            if child == 0:
                c.inc()
                print(client.stats()["client"], flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            for child, go in children[1:]:
                os.write(go[1], b"x")
                os.waitpid(child, 0)
            """,
            self.name,
        )
        self.assertEqual([line.rpartition("/")[2] for line in out.split()], ["0", "1", "2", "3", "0"])


@both
class NameTests(ClientCase):
    def test_names_that_break_the_rules_are_an_error_when_the_tab_is_made(self) -> None:
        out = self.run_python(
            """
            from taba import client
            bad = [
                lambda: client.counter("a b"), lambda: client.counter(""), lambda: client.counter("_x"), lambda: client.counter("taba.x"),
                lambda: client.counter(7), lambda: client.tab("a", type="9"), lambda: client.tab("a", type=None),
                lambda: client.gauge("a", labels={"9": "x"}), lambda: client.gauge("a", labels={"a": 7.5}), lambda: client.gauge("a{b}"),
                lambda: client.counter("x" * 201), lambda: client.gauge('a{c="1",b="2"}'),
            ]
            errors = 0
            for call in bad:
                try:
                    call()
                except ValueError:
                    errors += 1
            assert errors == len(bad), errors
            client.histogram("price", labels={"exchange": "a\\"b"}).observe(1)
            assert client.percentile('price{exchange="a\\\\"b"}') is client.histogram("price", labels={"exchange": "a\\"b"})
            print(client.histogram("price", {"exchange": "a\\"b"}).name)
            """
        )
        self.assertEqual(out, 'price{exchange="a\\"b"}\n')
        self.assertEqual([event.tab for event in self.events()], ['price{exchange="a\\"b"}'])

    def test_a_wrong_environment_is_an_error_when_the_first_tab_is_made(self) -> None:
        out = self.run_python(
            """
            from taba import client
            try:
                client.counter("c")
            except ValueError as error:
                print(error)
            """,
            TABA_RING_BYTES="many",
        )
        self.assertIn("TABA_RING_BYTES: 'many'", out)
