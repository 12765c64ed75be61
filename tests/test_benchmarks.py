"""The benchmark runs, says what it measured, and leaves nothing behind. How fast anything is, it says on a quiet machine only."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import aggregators, cluster, cluster_worker, machine, sampling, where
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.budgets import Budget
from benchmarks.charts import draw
from benchmarks.cold import JOURNAL_LEAST, Cold
from benchmarks.rows import Beside, Figure, Row, interleave, shown, table
from benchmarks.sampling import Place, Samples, read
from benchmarks.sending import CONNECTIONS, NotApplied, Sender, Streams
from benchmarks.services import Effort, agent_name
from benchmarks.worker import WorkerFailed
from taba import names
from taba.batch import APPLIED, NONCE_BYTES, OPEN, REFUSED, SentBatch, Verdict, decode_batch, decode_envelope, encode_verdicts
from taba.handlers.counter_group import JOURNAL_SLOTS
from tests.leftovers import RUN, left
from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


class RowsTest(SynchronousTestCase):
    def test_a_figure_is_the_median_and_keeps_its_range(self) -> None:
        self.assertEqual(Figure.of([3.0, 1.0, 2.0]), Figure(2.0, 1.0, 3.0, 3))

    def test_a_budget_is_met_at_its_bound_and_not_past_it(self) -> None:
        self.assertTrue(Budget("≤", 45).is_met(45))
        self.assertFalse(Budget("≤", 45).is_met(45.1))
        self.assertTrue(Budget("≥", 5e6).is_met(5e6))
        self.assertFalse(Budget("≥", 5e6).is_met(5e6 - 1))

    def test_a_row_in_json_has_its_budget_and_its_ratio_to_floor_and_peer(self) -> None:
        floor = Beside("the clock", Figure.of([20.0]))
        row = Row("record", Figure.of([40.0]), "ns", Budget("≤", 45), floor, None).as_json()
        self.assertEqual((row["median"], row["met"]), (40.0, True))
        self.assertEqual((row["floor"]["name"], row["floor"]["ratio"], row["peer"]), ("the clock", 2.0, None))

    def test_a_table_shows_every_row(self) -> None:
        rows = [Row("one", Figure.of([1.5]), "ms"), Row("two", Figure.of([0.0]), "calls", Budget("≤", 0))]
        self.assertEqual(table("Two", rows).row_count, 2)
        self.assertEqual(shown(2.5e6, "events/s"), "2.50 M events/s")

    def test_rounds_are_interleaved(self) -> None:
        order: list[str] = []
        found = interleave({"a": lambda: order.append("a") or 1.0, "b": lambda: order.append("b") or 2.0}, 2)  # type: ignore[func-returns-value]
        self.assertEqual(order, ["a", "b", "a", "b"])
        self.assertEqual(found, {"a": [1.0, 1.0], "b": [2.0, 2.0]})


class ChartTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="taba-test-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def drawn(self, benchmark: str, rows: list[Row]) -> str:
        [path] = draw({"benchmarks": {benchmark: {"rows": [row.as_json() for row in rows]}}}, self.directory)
        self.assertEqual(path.name, f"bench-{benchmark}.svg")
        return path.read_text()

    def bars(self, drawn: str) -> list[float]:
        found = [rect.get("width", "") for rect in ElementTree.fromstring(drawn).iter(f"{SVG}rect")]
        return [float(width) for width in found if width != "100%"]  # that is the ground

    def test_a_bar_a_figure_with_its_name_and_the_floor_last(self) -> None:
        floor = Beside("an empty call", Figure.of([16.0]))
        rows = [
            Row("record(1.0)", Figure.of([20.0]), "ns", floor=floor),
            Row("… beside it", Figure.of([1.25]), "×"),
            Row("peer: a < b & c", Figure.of([2000.0]), "ns", floor=floor),
        ]
        drawn = self.drawn("record", rows)
        self.assertEqual(drawn, self.drawn("record", rows))
        texts = [text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
        names = ("Taba, record(1.0)", "a < b & c", "floor: an empty call")
        self.assertEqual([text for text in texts if text in names], list(names))
        ours, theirs, lowest = self.bars(drawn)
        self.assertLess(lowest, ours)
        times = math.log(2000 / 20) / math.log(20 / 16)
        self.assertLess(abs((theirs - ours) / (ours - lowest) / times - 1), 0.03)  # a bar's end is told to a tenth of a pixel

    def test_figures_of_a_plain_axis_are_as_long_as_they_are_great(self) -> None:
        rows = [Row("Taba adds", Figure.of([0.5]), "%"), Row("another adds", Figure.of([5.0]), "%"), Row("in all", Figure.of([90.0]), "µs")]
        ours, theirs = self.bars(self.drawn("served", rows))
        self.assertLess(abs(theirs / ours - 10), 0.1)

    def places(self, drawn: str) -> list[tuple[float, float]]:
        """Where each bar begins and ends."""
        found = [rect for rect in ElementTree.fromstring(drawn).iter(f"{SVG}rect") if rect.get("width") != "100%"]
        return [(x, x + float(rect.get("width", ""))) for rect in found for x in [float(rect.get("x", ""))]]

    def test_a_difference_below_nothing_is_drawn_to_the_other_side(self) -> None:
        names = ("nothing recorded, another one: differs by", "20 events: Taba adds", "20 events: another adds")
        rows = [Row(name, Figure.of([figure - 3, figure, figure + 4]), "%") for name, figure in zip(names, (0.5, -1.5, 54.0), strict=True)]
        drawn = self.drawn("served", rows)
        noise, ours, theirs = self.places(drawn)
        self.assertEqual((noise[0], ours[1]), (theirs[0], theirs[0]))
        self.assertLess(abs((ours[1] - ours[0]) / (noise[1] - noise[0]) - 3), 0.5)
        self.assertIn("-1.50 %", drawn)
        self.assertIn("its rounds: -4.50 % to 2.50 %", drawn)

    def test_the_least_of_a_logarithmic_axis_is_no_sliver(self) -> None:
        for least in (1.0, 9.9, 10.0, 101.0, 199.0):
            shortest, longest = self.bars(
                self.drawn("beside", [Row("4, Taba", Figure.of([least]), "ns"), Row("4, a", Figure.of([1e4]), "ns")])
            )
            self.assertGreater(shortest, longest / 20)

    def test_seconds_and_cores_of_the_cluster_have_each_an_axis_of_their_own(self) -> None:
        told = (
            ("record to visible, p50", 0.5, "s"),
            ("… p99", 1.0, "s"),
            ("dropped", 0.0, "events"),
            ("cores beside the Clients", 0.2, "cores"),
        )
        drawn = self.drawn("cluster", [Row(f"1 M a minute: {name}", Figure.of([figure]), unit) for name, figure, unit in told])
        (p50, p99, cores) = self.bars(drawn)
        self.assertLess(abs(p99 / p50 - 2), 0.01)
        self.assertAlmostEqual(cores, p99)  # each goes to the end of its axis
        for name in ("1 M a minute, p50", "1 M a minute, p99", "1 M a minute"):
            self.assertIn(f">{name}<", drawn)

    def test_what_each_aggregator_lacks_stands_beneath_it_and_which_is_durable_beside_its_figure(self) -> None:
        lacks = "in memory: " + "forgotten after each interval, " * 5
        rows = [Row(aggregators.WHOLE, Figure.of([200_000.0]), "lines/s"), Row("peer: another", Figure.of([2e6]), "lines/s", note=lacks)]
        drawn = self.drawn("aggregators", rows)
        texts = [text.text or "" for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
        self.assertEqual([text for text in texts if text.endswith("durable")], ["200,000 lines/s · durable"])
        first = next(number for number, text in enumerate(texts) if text.startswith("in memory"))
        self.assertIn(lacks.split(), [" ".join(texts[first : first + count]).split() for count in (2, 3)])

    def test_a_chart_is_dark_where_whoever_looks_prefers_that(self) -> None:
        drawn = ElementTree.fromstring(self.drawn("served", [Row("Taba adds", Figure.of([0.5]), "%")]))
        style = next(drawn.iter(f"{SVG}style")).text or ""
        light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
        used = {element.get("class") for element in drawn.iter() if element.get("class")}
        for name in used:
            self.assertIn(f".{name} {{", light)
            self.assertIn(f".{name} {{", dark)
        self.assertFalse([element for element in drawn.iter() if element.get("fill") or element.get("stroke")])  # what no style could turn

    def test_a_chart_says_on_what_machine_it_was_measured_and_whether_that_was_quiet(self) -> None:
        rows = [Row("nothing, and Taba", Figure.of([0.5]), "%").as_json()]
        machine: dict[str, object] = {"cpu": "Some", "cores": 2, "python": "3.11.7", "load_at_start": 0.3}
        told = []
        for quick, load in ((False, 0.3), (True, 0.3), (False, 7.0), (True, 17.0)):
            report = {
                "quick": quick,
                "machine": {**machine, "load_at_start": load, "empty_call_ns": {"begin": 33.2, "end": 31.0, "budgets_at": 16.4}},
                "benchmarks": {"served": {"rows": rows, "error": "later"}},
            }
            [path] = draw(report, self.directory)
            texts = [text.text or "" for text in ElementTree.fromstring(path.read_text()).iter(f"{SVG}text")]
            told.append(" ".join(texts[next(number for number, text in enumerate(texts) if text.startswith("Some")) :]))
            self.assertLessEqual(max(map(len, texts)), 140)  # more is beyond the chart's right end
        self.assertEqual(told[0], "Some, 2 cores, Python 3.11.7; an empty C call took 33.2 to 31 ns")
        self.assertIn("quick run", told[1])
        self.assertIn("load 7", told[2])
        self.assertIn("quick run", told[3])
        self.assertIn("load 17", told[3])

    def test_what_failed_or_has_no_chart_is_not_drawn(self) -> None:
        report = {"benchmarks": {"record": {"error": "no ring"}, "states": {"rows": [Row("bytes", Figure.of([1.0]), "bytes").as_json()]}}}
        self.assertEqual(draw(report, self.directory), [])


class LoadTest(SynchronousTestCase):
    def test_the_tabs_of_the_cluster_have_their_types_in_their_shares_among_the_ranks(self) -> None:
        for first in (0, 500, 9_900):
            types = [cluster_worker.kind_of(number).type for number in range(first, first + 100)]
            self.assertEqual(
                {kind.type: types.count(kind.type) for kind in cluster_worker.KINDS},
                {kind.type: kind.share for kind in cluster_worker.KINDS},
            )

    def test_a_client_of_the_cluster_uses_its_tabs_as_often_as_their_ranks_say(self) -> None:
        drawn = cluster_worker.drawn(7)
        counts = Counter(tab for tab, _ in drawn)
        self.assertLessEqual(len(counts), cluster_worker.TABS_EACH)
        first = 1 / sum(1 / rank**cluster_worker.ZIPF for rank in range(1, cluster_worker.TABS_EACH + 1))
        self.assertLess(abs(counts.most_common(1)[0][1] / len(drawn) - first), 0.03)
        self.assertEqual(drawn, cluster_worker.drawn(7))
        self.assertNotEqual(drawn, cluster_worker.drawn(8))

    def test_a_cold_round_has_one_event_for_each_state(self) -> None:
        cold, now = Cold(80, 40), 1_800_000_000.0
        columns = [column for columns in cold.round(now).values() for column in columns]
        self.assertEqual([column.events for column in columns], [1] * 80)
        self.assertEqual(sum(map(len, cold.fields().values())), 80)

    def test_journals_are_filled_evenly_up_to_their_bound(self) -> None:
        lengths = [column.events for columns in Cold(130, 10).journals(1_800_000_000.0).values() for column in columns]
        self.assertEqual({lengths.count(length) for length in range(JOURNAL_LEAST, JOURNAL_SLOTS + 1)}, {10})

    def test_each_connection_numbers_its_own_buckets_without_gaps(self) -> None:
        cold, streams = Cold(80, 8), Streams()
        streams.envelopes(cold.round(1_800_000_000.0))
        dealt = streams.envelopes(cold.round(1_800_000_005.0))
        batches = [decode_batch(entry.batch) for envelopes in dealt for envelope in envelopes for entry in envelope]
        self.assertEqual({batch.number for batch in batches}, {2})
        self.assertEqual(sorted(batch.bucket for batch in batches), sorted(cold.names()))


class Applying(http.server.BaseHTTPRequestHandler):
    """A Server that opens every stream and applies every batch, and notes its connections."""

    protocol_version = "HTTP/1.1"
    server: ApplyingServer

    def setup(self) -> None:
        self.server.held.append(self.request)
        super().setup()

    def do_POST(self) -> None:
        entries = decode_envelope(self.rfile.read(int(self.headers["Content-Length"]))).entries
        content = encode_verdicts([self.verdict(entry) for entry in entries], None)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def verdict(self, entry: object) -> Verdict:
        return Verdict(APPLIED, 1) if isinstance(entry, SentBatch) else Verdict(OPEN, bytes(NONCE_BYTES), 0)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class ApplyingServer(http.server.ThreadingHTTPServer):
    daemon_threads = False  # its end waits for that of each connection

    def __init__(self) -> None:
        self.held: list[socket.socket] = []
        super().__init__(("127.0.0.1", 0), Applying)


class SendingTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = ApplyingServer()
        self.addCleanup(self.server.server_close)
        self.serving = threading.Thread(target=self.server.serve_forever)
        self.serving.start()
        self.addCleanup(self.serving.join)
        self.addCleanup(self.server.shutdown)
        self.sender = Sender(f"http://127.0.0.1:{self.server.server_port}")
        self.addCleanup(self.sender.close)
        self.cold, self.streams = Cold(80, 8), Streams()

    def round(self, number: int) -> None:
        self.sender.send(self.streams.envelopes(self.cold.round(1_800_000_000.0 + 5 * number)))

    def test_connections_are_kept_from_round_to_round_and_closed_in_the_end(self) -> None:
        for number in range(3):
            self.round(number)
        self.assertEqual(len(self.server.held), CONNECTIONS)
        self.sender.close()
        self.server.server_close()  # joins whoever still reads from a connection
        self.assertEqual([held.fileno() for held in self.server.held], [-1] * CONNECTIONS)

    def test_a_connection_that_the_server_closed_meanwhile_is_made_anew_and_no_other(self) -> None:
        self.round(0)
        self.server.held[1].shutdown(socket.SHUT_RDWR)
        self.round(1)
        self.assertEqual(len(self.server.held), CONNECTIONS + 1)

    def test_what_is_refused_is_raised(self) -> None:
        self.patch(Applying, "verdict", lambda handler, entry: Verdict(REFUSED, "malformed", "no batch"))
        with self.assertRaisesRegex(NotApplied, "no batch"):
            self.round(0)


class MachineTest(SynchronousTestCase):
    def test_what_a_process_used_is_told_finer_than_in_ticks_and_of_one_that_has_ended_not_at_all(self) -> None:
        before, since = machine.cpu_seconds([os.getpid()]), time.process_time()
        while time.process_time() < since + 0.002:
            pass
        now, most = machine.cpu_seconds([os.getpid()]) - before, time.process_time() - since
        self.assertGreaterEqual(now, 0.002)
        self.assertLess(now, most + 0.01)
        ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
        ended.wait(PATIENCE_SECONDS)
        with self.assertRaises(OSError):
            machine.cpu_seconds([ended.pid])

    def test_where_the_kernel_tells_no_clock_of_a_process_its_ticks_are_taken(self) -> None:
        self.patch(time, "clock_gettime", self.refuse)
        self.assertApproximates(machine.cpu_seconds([os.getpid()]), time.process_time(), 1.0)

    def refuse(self, clock: int) -> float:
        raise OSError(clock)

    def phase(self, *seconds: float) -> machine.Phase:
        """What is told where the calls of a round take so many seconds, at each look."""
        phase = machine.Phase()
        for its in seconds:
            self.patch(machine, "with_value", lambda call, value, times, its=its: its)
            phase.look()
        return phase

    def test_the_phase_of_the_machine_is_told_beside_the_one_that_budgets_were_set_in(self) -> None:
        needs_program("cc")
        call = machine.Phase.CALLS * 1e-9
        slow = self.phase(33.2 * call, 50 * call, 31 * call)  # what is between the first and the last is not told
        self.assertEqual(slow.as_json(), {"begin": 33.2, "end": 31.0, "budgets_at": 16.4})
        took = "an empty C call that reads the coarse clock took 33.2 ns at the begin and 31 ns at the end"
        self.assertEqual(slow.told(), f"{took}; budgets were set where it took 16.4: nanoseconds here are some 2.0 × dearer")
        self.assertTrue(self.phase(8 * call, 8.4 * call).told().endswith("nanoseconds here are some 2.0 × cheaper"))
        self.assertTrue(self.phase(16 * call, 17 * call).told().endswith("nanoseconds here are as dear"))

    def test_the_phase_is_measured_by_a_real_call_that_a_compiler_made(self) -> None:
        needs_program("cc")
        phase = machine.Phase()
        phase.look()
        found = phase.as_json()
        assert found is not None
        self.assertEqual(found["begin"], found["end"])  # one look is both
        self.assertGreater(found["begin"], 0.0)

    def test_without_a_compiler_or_where_it_refuses_a_sentence_says_that_the_phase_is_not_known(self) -> None:
        def refuses(directory: Path) -> Path:
            raise subprocess.CalledProcessError(1, "cc")

        for build, why in ((lambda directory: None, "there is no compiler"), (refuses, "the compiler refused it (1)")):
            self.patch(machine, "build_floor", build)
            phase = machine.Phase()
            phase.look()
            self.assertIsNone(phase.as_json())
            self.assertIn(f"is not known: an empty C call that reads the coarse clock was not measured, for {why}", phase.told())


class ClusterTest(SynchronousTestCase):
    waited: list[float]

    def rows(self, *missing: int) -> list[str]:
        """The names of the rows of a run, of which each rate leaves so many events that are not visible."""
        return [row.name for row in self.run_of(*missing)]

    def run_of(self, *missing: int, dropped: int = 0) -> list[Row]:
        held = [
            cluster.Held(10, 0, 10.0, {"p50": 0.1, "p99": 0.2}, 1.0, left, dict.fromkeys((*cluster.PARTS, "clients"), 0.1), {})
            for left in missing
        ]
        parts = [one._replace(resident=dict.fromkeys(cluster.PARTS, 1.0)) for one in held]
        waited = self.waited = []

        class Pretended(cluster.Cluster):
            def __init__(self, *arguments: object):
                self.recorded, self._dropped = 40, dropped
                self._of_type = dict.fromkeys((kind.type for kind in cluster.COUNTED), 0)
                self._services = SimpleNamespace(query=SimpleNamespace(aggregates=lambda name: {}))  # type: ignore[assignment]

            def hold(self, minute: float, seconds: float, patience: float) -> cluster.Held:
                waited.append(patience)
                return parts.pop(0)

        self.patch(cluster, "running", lambda **options: contextlib.nullcontext(None))
        self.patch(cluster, "Cluster", Pretended)
        return list(cluster.run(Effort(True)))

    def test_where_events_dropped_the_last_row_says_that_nothing_was_compared(self) -> None:
        last = self.run_of(0, 0, 0, 0, dropped=3)[-1]
        self.assertEqual(last.name, "events recorded; nothing was compared with States")
        self.assertTrue(last.note.startswith("3 events dropped"))

    def test_what_each_part_used_is_said_once(self) -> None:
        [note] = [row.note for row in self.run_of(0, 0, 0, 0) if row.name == "1 M a minute: cores beside the Clients"]
        self.assertEqual([note.count(part) for part in (*cluster.PARTS, "Clients")], [1] * (len(cluster.PARTS) + 1))

    def test_all_rates_are_held_and_everything_is_found(self) -> None:
        names = self.rows(0, 0, 0, 0)
        self.assertEqual([sum(name.startswith(f"{rate} M") for name in names) for rate in (1, 10, 40)], [5, 5, 5])
        self.assertTrue(names[-1].startswith("events recorded, and found"))
        self.assertEqual(self.waited, [cluster.VISIBLE_SECONDS, *[cluster.QUICK_VISIBLE_SECONDS] * 3])  # the first makes all States

    def test_after_a_rate_of_which_not_all_is_visible_the_run_ends_and_says_so(self) -> None:
        names = self.rows(0, 0, 7)
        self.assertEqual([name for name in names if name.startswith("40 M") or "found" in name], [])
        self.assertIn("10 M a minute: not visible 1 s after the last", names)

    def test_a_cluster_that_does_not_even_begin_fails(self) -> None:
        with self.assertRaisesRegex(WorkerFailed, "1 of 10 events are not visible 1 s after the last"):
            self.rows(1)


class WhereTest(SynchronousTestCase):
    def test_what_a_process_did_is_seen_by_the_function_of_tabas_that_did_it(self) -> None:
        path = self.mktemp()
        for number in (signal.SIGPROF, sampling.SIGNAL):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        Samples(path).listen()
        signal.raise_signal(sampling.SIGNAL)
        until = time.process_time() + 20 * sampling.PERIOD
        while time.process_time() < until:
            names.canonical_name("requests", {f"label{number}": "value" for number in range(16)})
        signal.raise_signal(sampling.SIGNAL)
        seen = read(Path(path))
        self.assertIn("names.py", {place.module for place in seen})
        self.assertEqual(signal.getitimer(signal.ITIMER_PROF), (0.0, 0.0))

    def test_each_part_of_the_code_is_of_one_stage_and_each_stage_names_what_there_is(self) -> None:
        files = [str(path.relative_to(ROOT / "taba")) for path in (ROOT / "taba").rglob("*.py")]
        for part, stages in where.STAGES.items():
            for stage, modules in stages:
                for module in modules:
                    self.assertTrue(any(file.startswith(module) for file in files), (part, stage, module))
        self.assertEqual(where.stage_of("agent", Place("agent/drain.py", "steps", "numpy")), "events sorted into columns, folded, encoded")
        self.assertEqual(where.stage_of("server", Place("shard/joint.py", "run", "txredisapi")), "the store's protocol")
        self.assertEqual(where.stage_of("server", Place("", "", "attr")), where.ELSE)

    def test_the_stages_shares_are_of_what_the_part_took_the_largest_first(self) -> None:
        seen = Counter({Place("web.py", "_send", ""): 1, Place("shard/joint.py", "run", ""): 2, Place("shard/joint.py", "ask", ""): 1})
        rows = where.rows("server", "server", seen, 0.4)
        self.assertEqual(
            [(row.name, row.figure.median) for row in rows], [("server: transactions", 0.4 * 3 / 4), ("server: requests", 0.1)]
        )
        self.assertEqual(rows[0].note, "75%: joint.run 50.0%, joint.ask 25.0%")


class RunTest(SynchronousTestCase):
    def test_the_benchmarks_that_may_be_named_are_those_that_there_are(self) -> None:
        named = re.search(r"--only record server +# some of: (.+)", (ROOT / "docs" / "benchmarks.md").read_text())
        assert named is not None
        self.assertEqual(named[1].split(), list(BENCHMARKS))

    def test_rows_that_were_measured_before_it_failed_are_kept(self) -> None:
        def run(effort: Effort) -> Iterator[Row]:
            yield Row("first", Figure.of([1.0]), "s")
            raise WorkerFailed("and no more")

        self.patch(cluster, "run", run)
        report = Path(self.mktemp())
        printed = io.StringIO()
        self.patch(sys, "stdout", printed)
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.assertEqual(main(["--only", "cluster", "--json", str(report)]), 1)
        written = json.loads(report.read_text())
        found = written["benchmarks"]["cluster"]
        self.assertIn("empty_call_ns", written["machine"])
        self.assertIn((written["machine"]["empty_call_ns"] and "at the begin and") or "is not known", " ".join(printed.getvalue().split()))
        self.assertEqual(([row["name"] for row in found["rows"]], found["error"]), (["first"], "WorkerFailed: and no more"))

    def test_the_names_of_its_agents_have_the_word_of_the_run_of_tests_that_it_is_part_of(self) -> None:
        self.assertIn(RUN, agent_name())
        self.assertNotEqual(agent_name(), agent_name())

    @pytest.mark.real
    def test_a_quick_run_gives_figures_and_leaves_nothing_behind(self) -> None:
        temporary = Path(tempfile.mkdtemp(prefix="taba-test-"))
        self.addCleanup(temporary.rmdir)
        report = temporary / "report.json"
        self.addCleanup(report.unlink, missing_ok=True)
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--quick", "--only", "states", "server", "query", "--json", str(report)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        found = json.loads(report.read_text())
        self.assertEqual(list(found["benchmarks"]), ["states", "server", "query"])
        for benchmark in found["benchmarks"].values():
            for row in benchmark["rows"]:
                self.assertGreaterEqual(row["median"], 0.0)
                self.assertLessEqual(row["least"], row["most"])
        self.assertTrue(found["machine"]["cores"])
        self.assertEqual(list(temporary.iterdir()), [report])
        self.assertEqual([name for name in left() if "benchmark-" in name], [])  # another's may be at work beside it

    def test_a_benchmark_that_does_not_exist_is_named(self) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--only", "speed"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(run.returncode, 2)
        self.assertIn("speed", run.stderr)
