"""The benchmark runs, says what it measured, and leaves nothing behind. How fast anything is, it says on a quiet machine only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.budgets import Budget
from benchmarks.cold import JOURNAL_LEAST, Cold
from benchmarks.rows import Beside, Figure, Row, interleave, shown, table
from benchmarks.sending import Streams
from taba.batch import decode_batch
from taba.handlers.counter_group import JOURNAL_SLOTS
from tests.services import SHM

ROOT = Path(__file__).parent.parent


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


class LoadTest(SynchronousTestCase):
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


class RunTest(SynchronousTestCase):
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
            timeout=120,
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
        self.assertEqual(list(SHM.glob("taba*.benchmark-*")), [])

    def test_a_benchmark_that_does_not_exist_is_named(self) -> None:
        run = subprocess.run([sys.executable, "-m", "benchmarks", "--only", "speed"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 2)
        self.assertIn("speed", run.stderr)
