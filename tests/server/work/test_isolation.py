"""One bad part harms nobody else: Handlers that raise, lie, grow, hang and crash, in one batch with good ones, under load."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

import pytest

from taba.batch import LATER
from taba.server.fold.ingest import SLOW

from ...valkey import free_port
from ..running import encoded
from ..samples import column, tab_in
from ..test_service import ROOT, Processes, ask, eventually, lives

BUCKETS = 16
BAD_BUCKET = 3
PLUGIN = '''
import ctypes, os
from taba.handlers import Handler

class Count(Handler):
    """How many events; the others do as their names say."""
    type = "Count"
    def new_state(self): return 0
    def fold(self, state, events, now): return state + len(events.values)
    def project(self, state, now): return {"count": state}
    def aggregate(self, projections): return {"count": sum(one["count"] for one in projections)}

class Raises(Count):
    type = "Raises"
    def fold(self, state, events, now): raise ValueError("no")

class Rubbish(Count):
    type = "Rubbish"
    def fold(self, state, events, now): return lambda: "no State"

class Text(Count):
    type = "Text"
    def dump(self, state): return "not bytes"

class Huge(Count):
    type = "Huge"
    def dump(self, state): return bytes(2 << 20)

class Exits(Count):
    type = "Exits"
    def fold(self, state, events, now): os._exit(0)

class Segfaults(Count):
    type = "Segfaults"
    def fold(self, state, events, now): return ctypes.string_at(0)

class Hangs(Count):
    type = "Hangs"
    def fold(self, state, events, now):
        while True: pass

count, raises, rubbish, text, huge, exits, segfaults, hangs = Count(), Raises(), Rubbish(), Text(), Huge(), Exits(), Segfaults(), Hangs()
'''
BAD = ("Raises", "Rubbish", "Text", "Huge", "Exits", "Segfaults", "Hangs")
SECONDS = 6.0
LEAST_BATCHES = 3


class Isolation(Processes):
    @pytest.mark.real
    def test_good_events_are_exact_and_bad_ones_dead_letters_under_load(self) -> None:
        plugins = self.directory / "site" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "bad_handlers.py").write_text(PLUGIN)
        self.port = free_port()
        server = self.run_server(
            "--listen", f"tcp:{self.port}:interface=127.0.0.1", "--buckets", str(BUCKETS), PYTHONPATH=f"{plugins.parent.parent}:{ROOT}"
        )
        eventually(lambda: self.ready(self.port))
        self.sent: dict[str, int] = {}
        self.waited: set[tuple[int, str]] = set()
        self.failures: list[BaseException] = []
        self.lock = threading.Lock()
        end = time.monotonic() + SECONDS
        senders = [threading.Thread(target=self.sender, args=(stream, BAD_BUCKET, end)) for stream in (1, 2, 3)]
        senders += [threading.Thread(target=self.sender, args=(stream, bucket, end)) for stream in (4, 5) for bucket in (0, 7, 11)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        self.assertEqual(self.failures, [])
        self.assertTrue(lives(server.pid))
        self.assertIsNone(server.poll())
        # the good ones, to the event
        aggregates = ask(self.port, "/v1/aggregates")
        good = {tab: count for tab, count in self.sent.items() if tab not in BAD}
        self.assertEqual({tab: aggregate["count"] for tab, aggregate in aggregates.items() if "error" not in aggregate}, good)
        self.assertLessEqual(
            sum("error" in aggregate for aggregate in aggregates.values()), len(BAD)
        )  # of which nothing but dead letters is there
        self.assertGreaterEqual(min(good.values()), 2 * LEAST_BATCHES)
        # the bad ones, to the event
        status = ask(self.port, "/v1/status")
        bad = {type: self.sent[type] for type in BAD}
        self.assertEqual(
            status["dead_letters_by_reason"], {"handler_error": sum(bad.values()) - bad["Huge"], "state_too_large": bad["Huge"]}
        )
        self.assertEqual(status["folded"], sum(good.values()))
        self.assertEqual({type: status["handlers"][type]["errors"] for type in BAD}, bad)
        reasons = {letter["type"]: letter["reason"] for letter in ask(self.port, "/v1/dead-letters?limit=10000")}
        self.assertEqual(reasons, {**dict.fromkeys(BAD, "handler_error"), "Huge": "state_too_large"})
        # nobody else was told to wait for a Handler
        self.assertEqual({bucket for bucket, why in self.waited if why == SLOW} - {BAD_BUCKET}, set())

    def sender(self, stream: int, bucket: int, end: float) -> None:
        try:
            self.send_until(stream, bucket, end)
        except BaseException as error:  # shown by the test itself
            self.failures.append(error)

    def send_until(self, stream: int, bucket: int, end: float) -> None:
        """One batch after another, each until it is applied."""
        tabs = [(tab_in(bucket, 0, BUCKETS), "TotalsCounter"), (tab_in(bucket, 1, BUCKETS), "CounterGroup")]
        if bucket == BAD_BUCKET:
            tabs = [(tabs[0][0], "TotalsCounter"), (tab_in(bucket, 2, BUCKETS), "Count")]
        number = 0
        while number < LEAST_BATCHES or time.monotonic() < end:  # a busy machine is slow to start one child after another
            number += 1
            columns = [column(tab, type, [1.0, 2.0], client=f"web/{stream}") for tab, type in tabs if type != "CounterGroup"]
            if bucket == BAD_BUCKET:
                bad = [column(tab_in(bucket, 3 + place, BUCKETS), type, [1.0], client=f"web/{stream}") for place, type in enumerate(BAD)]
                columns = [*bad[:4], *columns, *bad[4:]]
            batch = encoded(stream, bucket, number, columns)
            while True:
                [verdict] = self.send(self.port, batch)
                if verdict.word != LATER:
                    break
                self.waited.add((bucket, str(verdict.why)))
                time.sleep(min(float(verdict.detail), 0.05))
            assert (verdict.word, verdict.detail) == ("applied", number), verdict
            with self.lock:
                for one in columns:
                    name = one.type if one.type in BAD else one.tab
                    self.sent[name] = self.sent.get(name, 0) + one.events


class Versions(Processes):
    """A Server started again with another version of a plugin: what was written stays right, what came too early is folded."""

    SOURCE = """
from taba.handlers import Handler
class Longest(Handler):
    type = "Longest"
    version = {version}
    def new_state(self): return ["", 0]
    def fold(self, state, events, now):
        return [max([state[0], *events.values], key=len), state[1] + len(events.values)]
    def project(self, state, now): return {{"longest": state[0], "of": state[1]}}
    def aggregate(self, projections):
        return {{"longest": max((one["longest"] for one in projections), key=len), "of": sum(one["of"] for one in projections)}}
    def upgrade(self, content, version): return [super().load(content), 1000]
    {more}
longest = Longest()
"""
    FIRST = """
    def new_state(self): return ""
    def fold(self, state, events, now): return max([state, *events.values], key=len)
    def project(self, state, now): return {"longest": state}
    def aggregate(self, projections): return max(projections, key=lambda one: len(one["longest"]))
"""

    port: int
    process: subprocess.Popen[str] | None

    def started(self, source: str) -> None:
        """A Server with this plugin, in place of the one before."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        plugins = self.directory / "site" / "twisted" / "plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        (plugins / "longest_handler.py").write_text(source)
        environ = {"PYTHONPATH": f"{plugins.parent.parent}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = self.run_server("--listen", f"tcp:{self.port}:interface=127.0.0.1", "--buckets", str(BUCKETS), **environ)
        eventually(lambda: self.ready(self.port))

    def job(self, kind: str) -> Any:
        id = ask(self.port, f"/v1/{kind}", b"")["id"]

        def ended() -> Any:
            [record] = ask(self.port, f"/v1/jobs?id={id}")
            return record if record["state"] != "running" else None

        record = eventually(ended)
        self.assertEqual(record["state"], "done", record)
        return record["message"]

    @pytest.mark.real
    def test_another_version_of_a_plugin_reads_what_was_written_and_folds_what_came_too_early(self) -> None:
        self.process = None
        self.port = free_port()
        tab, other = tab_in(3, 0, BUCKETS), tab_in(3, 1, BUCKETS)

        def send(number: int, *words: str) -> None:
            columns = [column(tab, "Longest", list(words)), column(other, "Longest", list(words), client="web/2")]
            eventually(lambda: self.send(self.port, encoded(1, 3, number, columns))[0].word == "applied")

        def longest(name: str) -> Any:
            return ask(self.port, "/v1/aggregates").get(name)

        first = self.SOURCE.format(version=1, more=self.FIRST.replace("\n", "\n"))
        self.started("")  # no such plugin
        send(1, "early", "bird")
        status = ask(self.port, "/v1/status")
        self.assertEqual((status["dead_letters_by_reason"], status["types_missing"]), ({"unknown_type": 4}, ["Longest"]))
        self.started(first)
        self.assertIn("4 events folded", self.job("retry"))
        self.assertEqual(longest(tab), {"longest": "early"})
        send(2, "longer word")
        # a newer one reads it at once, folds on, and rewrites the rest
        self.started(self.SOURCE.format(version=2, more=""))
        self.assertEqual(longest(tab), {"longest": "longer word", "of": 1000})
        self.assertEqual(self.send(self.port, encoded(1, 3, 3, [column(tab, "Longest", ["a", "b"])]))[0].word, "applied")
        self.assertEqual((longest(tab), longest(other)), ({"longest": "longer word", "of": 1002}, {"longest": "longer word", "of": 1000}))
        self.assertEqual(self.job("upgrade"), "1 State upgraded")
        # back to the older one: newer States are not touched, and what comes for them waits
        self.started(first)
        send(4, "the longest of all words")
        status = ask(self.port, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"newer_state": 2})
        self.assertEqual(longest(tab), {"error": "the State has version 2, the Handler 1"})
        self.assertIn("0 events folded, 2 still", self.job("retry"))
        self.assertIn("newer than the Handler's", self.job("upgrade"))
        self.started(self.SOURCE.format(version=2, more=""))
        self.assertIn("2 events folded, 0 still", self.job("retry"))
        self.assertEqual(longest(tab), {"longest": "the longest of all words", "of": 1003})
        status = ask(self.port, "/v1/status")
        self.assertEqual((status["dead_letters"], status["folded"]), (0, 4 + 2 + 2 + 2))
        # another Type for the Tab: the first stands, until the Tab is deleted
        self.send(self.port, encoded(1, 3, 5, [column(tab, "Gauge", [1.0])]))
        self.assertEqual(ask(self.port, "/v1/status")["dead_letters_by_reason"], {"type_conflict": 1})
        [letter] = ask(self.port, "/v1/dead-letters")
        self.assertEqual((letter["type"], letter["detail"]), ("Gauge", "the Tab has Type Longest"))
