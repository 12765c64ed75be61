"""prometheus_client, recorded as well: theirs is as it was, and the fleet's sums are whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, metrics, values
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from taba.client import process, pure, testing
from taba.compat import values as compat
from taba.compat.run import environment
from tests.forking import forked
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

RUN = [sys.executable, "-m", "taba.compat.run", "--compat", "prometheus"]

WORKER = """
import sys
from prometheus_client import Counter, Gauge, Histogram, Summary
counter, summary, histogram = Counter("hits", "d", ["route"]), Summary("size", "d"), Histogram("took_seconds", "d")
gauge = Gauge("depth", "d")
modes = [Gauge(f"depth_{mode}", "d", multiprocess_mode=mode) for mode in sorted(Gauge._MULTIPROC_MODES)]
number = 0
while True:
    counter.labels("/cart").inc(2)
    summary.observe(3)
    histogram.observe(0.25)
    gauge.set(number)
    for each in modes:
        each.set(number)
    number += 1
    print(number, flush=True)
    if number == int(sys.argv[1]):
        sys.stdin.read()
"""

COLLECT = """
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest, multiprocess
Counter("hits", "d", ["route"]), Summary("size", "d"), Histogram("took_seconds", "d"), Counter("never", "d")
[Gauge(f"depth_{mode}", "d", multiprocess_mode=mode) for mode in Gauge._MULTIPROC_MODES]
multiprocess.mark_process_dead(1)
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


class Odd:
    """A value of another kind."""

    _multiprocess = True

    def __init__(self, *arguments: Any, **more: Any):
        self.content = 0.0

    def inc(self, amount: float) -> None:
        self.content += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        self.content = value

    def get(self) -> float:
        return self.content


class Recorded(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(metrics.MetricWrapperBase, "__init__", metrics.MetricWrapperBase.__init__)
        self.patch(values, "ValueClass", values.ValueClass)
        for kind, method in ((Info, "info"), (Enum, "state")):
            self.patch(kind, method, getattr(kind, method))
        compat.install(values, metrics)
        self.registry = CollectorRegistry()

    def test_each_change_is_an_event_and_theirs_is_as_it_was(self) -> None:
        with testing.capture() as captured:
            counter = Counter("hits", "what came", ["route"], registry=self.registry)
            counter.labels("/cart").inc()
            counter.labels("/cart").inc(2.5, exemplar={"trace": "1"})
            counter.labels("/cart").reset()
            gauge = Gauge("depth", "", registry=self.registry)
            gauge.set(3)
            gauge.inc()
            gauge.dec(5)
            Summary("size", "", registry=self.registry).observe(7)
            Histogram("took", "", registry=self.registry).observe(0.3)
            Enum("state", "", states=["up", "down"], registry=self.registry).state("down")
            Info("build", "", registry=self.registry).info({"version": "1", "by": "us"})
        self.assertEqual(
            [(event.name, event.type, event.value) for event in captured.events],
            [
                ('hits{route="/cart"}', "CounterGroup", 1),
                ('hits{route="/cart"}', "CounterGroup", 2.5),
                *(("depth", "Gauge", value) for value in (3, 4, -1)),
                ("size", "CounterGroup", 7),
                ("took", "PercentileGroup", 0.3),
                ("state", "Gauge", "down"),
                ("build", "Gauge", "by=us,version=1"),
            ],
        )
        for name, value in (("hits_total", None), ("depth", -1), ("size_sum", 7), ("size_count", 1), ("took_count", 1), ("took_sum", 0.3)):
            if value is not None:
                self.assertEqual(self.registry.get_sample_value(name), value, name)
        self.assertEqual(self.registry.get_sample_value("hits_total", {"route": "/cart"}), 0)
        self.assertIn(b'state{state="down"} 1.0', prometheus_client.generate_latest(self.registry))

    def test_infos_and_enums_take_what_theirs_take(self) -> None:
        with testing.capture() as captured:
            enum, info = Enum("state", "", states=["up", "down"], registry=self.registry), Info("build", "", registry=self.registry)
            enum.state(state="down")
            info.info(val={"b": "2", "a": "1"})
            self.assertRaises(ValueError, enum.state, "sideways")
            self.assertRaises(TypeError, enum.state)
            self.assertRaises(TypeError, enum.state, "up", "down")
        self.assertEqual([event.value for event in captured.events], ["down", "a=1,b=2"])

    def test_with_exact_buckets_each_bound_is_counted_beside_it(self) -> None:
        self.patch(os, "environ", {**os.environ, compat.EXACT_BUCKETS: "exact"})
        self.patch(values, "ValueClass", compat.recorded(values.MutexValue))
        with testing.capture() as captured:
            Histogram("took", "", ["a"], buckets=(1, 5), registry=self.registry).labels("b").observe(3)
        self.assertEqual(
            sorted((event.name, event.value) for event in captured.events), [('took.bucket{a="b",bound="5.0"}', 1), ('took{a="b"}', 3)]
        )
        with testing.capture() as captured:
            for bound in "xy":  # of which each is a series of its own
                Histogram(f"of_{bound}", "", ["bound"], buckets=(1, 5), registry=self.registry).labels(bound).observe(3)
        self.assertEqual([event.name for event in captured.events], ['of_x{bound="x"}', 'of_y{bound="y"}'])

    def test_what_can_be_no_tab_is_theirs_alone_and_told_once(self) -> None:
        self.patch(compat, "_told", set())
        labels = [f"l{number}" for number in range(17)]
        with self.assertLogs("taba.compat", "WARNING") as told, testing.capture() as captured:
            counter = Counter("wide", "", labels, registry=self.registry)
            for value in "ab":
                counter.labels(*[value] * 17).inc()
        self.assertEqual((len(told.output), captured.events), (1, []))
        self.assertEqual(self.registry.get_sample_value("wide_total", dict.fromkeys(labels, "a")), 1)

    def test_amounts_of_each_kind_count_as_theirs_do_with_the_accelerator_and_without(self) -> None:
        for place, ports in enumerate((process.PORTS, pure)):
            self.patch(compat, "PORTS", ports)
            self.patch(values, "ValueClass", compat.recorded(values.MutexValue))
            with testing.capture() as captured:
                counter = Counter(f"amounts_{place}", "", registry=self.registry)
                plain = values.MutexValue("counter", "plain", "plain_total", (), (), "")
                amounts: Any = (1, 2.5, True, Fraction(1, 4), numpy.float32(0.5), numpy.int64(3), 2**60, 0)
                for amount in amounts:
                    counter.inc(amount)
                    plain.inc(amount)
                for wrong in (Decimal(1), "1", None, 10**400):
                    self.assertRaises((TypeError, OverflowError), plain.inc, wrong)
                    self.assertRaises((TypeError, OverflowError), counter.inc, wrong)
            found = [float(value) for value in captured.values(f"amounts_{place}")]
            self.assertEqual(found, [1.0, 2.5, 1.0, 0.25, 0.5, 3.0, float(2**60), 0.0])
            self.assertEqual(self.registry.get_sample_value(f"amounts_{place}_total"), plain.get())
            counter.reset()
            self.assertEqual(self.registry.get_sample_value(f"amounts_{place}_total"), 0)

    def test_threads_lose_nothing_of_a_value_and_of_its_records(self) -> None:
        with testing.capture() as captured:
            counter = Counter("of_threads", "", registry=self.registry)

            def work() -> None:
                for _ in range(2_000):
                    counter.inc()

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual((self.registry.get_sample_value("of_threads_total"), captured.total("of_threads")), (8_000, 8_000))

    def test_a_child_that_is_forked_while_another_thread_changes_a_value_changes_it_too(self) -> None:
        recorded = [("depth", 2), ("hits", 1)]
        for value_class, name in ((values.ValueClass, "_lock"), (compat.recorded(Odd), "_order")):
            self.patch(values, "ValueClass", value_class)
            registry = CollectorRegistry()
            gauge, counter = Gauge("depth", "d", registry=registry), Counter("hits", "d", registry=registry)
            lock = getattr(gauge._value, name)

            def changes(gauge: Any = gauge, counter: Any = counter, registry: Any = registry) -> None:
                with testing.capture() as captured:  # else it made a ring under the default's name, which nobody removes
                    gauge.set(2)
                    counter.inc()
                assert registry.get_sample_value("depth") == 2
                assert sorted((event.name, event.value) for event in captured.events) == recorded

            with lock, getattr(counter._value, "_lock", lock) if name == "_lock" else contextlib.nullcontext():
                code = forked(changes)
            self.assertEqual(code, 0, name)

    def test_installing_twice_is_installing_once(self) -> None:
        first = values.ValueClass
        compat.install(values, metrics)
        self.assertIs(values.ValueClass, first)

    def test_values_that_are_no_number_under_a_lock_are_recorded_too(self) -> None:
        self.patch(values, "ValueClass", compat.recorded(Odd))
        with testing.capture() as captured:
            Counter("c", "", registry=self.registry).inc(2)
            gauge = Gauge("g", "", registry=self.registry)
            gauge.set(5)
            gauge.inc()
        self.assertEqual([event.value for event in captured.events], [2, 5, 6])


class Running(SynchronousTestCase):
    def run_in(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TABA_")}
        path = os.pathsep.join([environ.pop("PYTHONPATH", ""), str(ROOT)])
        return subprocess.run(
            [*RUN, *command], env={**clean, "PYTHONPATH": path, **environ}, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )

    def test_the_program_and_what_it_starts_are_recorded_without_a_changed_import(self) -> None:
        shown = "import prometheus_client.values as v; print(getattr(v.ValueClass, 'is_recorded', False))"
        code = f"{shown}\nimport subprocess, sys; sys.stdout.flush(); subprocess.run([sys.executable, '-c', {shown!r}])"
        done = self.run_in(sys.executable, "-c", code)
        self.assertEqual((done.stdout, done.stderr), ("True\nTrue\n", ""))

    def test_a_program_without_it_imports_nothing_of_it_and_its_own_sitecustomize_runs(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "sitecustomize.py").write_text("print('mine')")
        code = "import sys; print([name for name in ('taba.client', 'prometheus_client', 'logging') if name in sys.modules])"
        done = self.run_in(sys.executable, "-c", code, PYTHONPATH=str(directory.absolute()))
        self.assertEqual((done.stdout, done.stderr), ("mine\nmine\n[]\n", ""))  # first of `taba-run` itself, which is Python, too

    def test_a_launcher_that_goes_on_as_this_one_does_runs_once_and_so_does_the_programs_own(self) -> None:
        directories = [Path(self.mktemp()).absolute() for _ in range(2)]
        chain = (
            "import os, sys; from importlib.machinery import PathFinder; from importlib.util import module_from_spec\n"
            "print('launcher')\nhere = os.path.dirname(__file__)\n"
            "spec = PathFinder.find_spec('sitecustomize', [path for path in sys.path if path != here])\n"
            "spec.loader.exec_module(module_from_spec(spec))"
        )
        for directory, code in zip(directories, (chain, "print('mine')"), strict=True):
            directory.mkdir()
            (directory / "sitecustomize.py").write_text(code)
        environ = environment("prometheus", {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, directories), str(ROOT)])})
        done = subprocess.run([sys.executable, "-c", ""], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.stdout, done.stderr), ("launcher\nmine\n", ""))

    def test_in_a_python_without_taba_one_line_says_so_and_all_else_goes_on(self) -> None:
        directory = Path(self.mktemp()).absolute()
        (directory / "taba").mkdir(parents=True)
        (directory / "taba" / "__init__.py").write_text("raise ImportError('not here')")
        (directory / "sitecustomize.py").write_text("print('mine')")
        environ = environment("prometheus", {**os.environ, "PYTHONPATH": str(directory)})
        done = subprocess.run([sys.executable, "-c", ""], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.stdout, done.stderr.count("\n")), ("mine\n", 1))
        self.assertIn("not here", done.stderr)

    def test_what_cannot_be_run_is_one_line(self) -> None:
        for command, code in (([], 2), (["no-such-program"], 127)):
            done = self.run_in(*command)
            self.assertEqual((done.returncode, done.stderr.count("\n"), done.stderr[:9]), (code, 1, "taba-run:"))

    def test_once_is_enough_on_the_path(self) -> None:
        once = environment("prometheus", {"PYTHONPATH": "/a"})
        self.assertEqual(environment("prometheus", once), once)


@pytest.mark.real
class Fleet(SynchronousTestCase):
    def test_the_servers_sums_are_those_of_four_processes_that_are_killed(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent()
        wanted, workers = [60, 70, 80, 90], []
        for number in (*wanted, 50):  # the last one lives on
            environ = {**services.environ, "TABA_CLIENT_ID": f"web/{number}"}
            worker = subprocess.Popen(
                [*RUN, sys.executable, "-c", WORKER, str(number)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                self.addCleanup(pipe.close)
            self.addCleanup(worker.wait)
            self.addCleanup(worker.kill)
            workers.append(worker)
        for number, worker in zip((*wanted, 50), workers, strict=True):
            assert worker.stdout is not None
            while worker.stdout.readline() != f"{number}\n":
                self.assertIsNone(worker.poll())
            if number in wanted:
                os.kill(worker.pid, signal.SIGKILL)  # right after its last change
        wanted.append(50)
        events, deadline = sum(wanted), time.monotonic() + PATIENCE_SECONDS
        while services.query.status()["folded"] < 14 * events:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        query = services.query
        hits, size, took, depth = (
            query.aggregate(name, labels)
            for name, labels in (("hits", {"route": "/cart"}), ("size", None), ("took_seconds", None), ("depth", None))
        )
        assert hits and size and took and depth
        self.assertEqual(hits["1h"]["total"], 2 * events)
        self.assertEqual((size["1h"]["total"], size["1h"]["count"]), (3 * events, events))
        self.assertEqual(took["1h"]["count"], events)
        self.assertAlmostEqual(took["1h"]["total"], 0.25 * events)
        levels = {client: shown["value"] for client, shown in query.projections(name="depth")["depth"].items()}
        self.assertEqual(levels, {f"web/{number}": number - 1 for number in wanted})  # of each process: all, min, max, sum follow
        self.assertEqual((depth["min"], depth["max"], depth["sum"]), (49, 89, sum(wanted) - 5))
        while services.query.alive(client_match="web/.*") != ["web/50"]:  # the Agent says who died within 3 s
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        environ = {**services.environ, "TABA_COMPAT_CLIENTS": "web/.*"}
        done = subprocess.run([*RUN, sys.executable, "-c", COLLECT], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.stderr, "")
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(done.stdout)
            for sample in family.samples
        }
        self.assertEqual(found["hits_total", "/cart"], 2 * events)
        self.assertEqual((found["size_count",], found["size_sum",]), (events, 3 * events))
        self.assertEqual((found["took_seconds_count",], found["took_seconds_sum",]), (events, 0.25 * events))
        self.assertEqual((found["took_seconds_bucket", "0.1"], found["took_seconds_bucket", "0.5"]), (0, events))
        levels = {f"web/{number}": number - 1.0 for number in wanted}
        for mode, value in (("min", 49), ("max", 89), ("sum", sum(levels.values()))):
            self.assertEqual((found[f"depth_{mode}",], found[f"depth_live{mode}",]), (value, 49), mode)
        self.assertIn(found["depth_mostrecent",], levels.values())
        self.assertEqual(found["depth_livemostrecent",], 49)
        for mode, shown in (("all", levels), ("liveall", {"web/50": 49.0})):
            self.assertEqual({key[1]: value for key, value in found.items() if key[0] == f"depth_{mode}"}, shown)
        self.assertLess(found["taba_compat_age_seconds",], PATIENCE_SECONDS)
        self.assertFalse([key for key in found if key[0].startswith("never")])
