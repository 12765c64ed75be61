"""What a MultiProcessCollector shows that asks a Server, and how it has an Agent drain."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, metrics, multiprocess
from twisted.trial.unittest import SynchronousTestCase

from taba.client import identity
from taba.compat import collecting
from taba.query import Question, ServerUnavailable

SHOWN = {"web/1": {"value": 3.0, "time": 10.0}, "web/2": {"value": 5, "time": 30.0}, "web/3": {"value": 4.0, "time": 20.0}}


class FakeAgent:
    """Answers each drain with the next of these."""

    def __init__(self, *answers: dict[str, Any] | Exception):
        self.answers = list(answers)
        self.now = 0.0

    def ask(self, question: Question[Any]) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def drained(self) -> float:
        return collecting.drained(self, lambda: self.now, self.pause)


class Drained(SynchronousTestCase):
    def test_what_was_recorded_before_is_waited_for_and_no_more(self) -> None:
        waits = {"batches": 2, "age": 0.5}
        for last, age in (({"batches": 0, "age": 0.0}, 0.0), ({"batches": 3, "age": 0.001}, 0.001)):
            agent = FakeAgent(waits, waits, last)
            self.assertEqual((agent.drained(), len(agent.answers)), (age, 1))

    def test_it_waits_for_so_long_and_then_says_how_old_what_it_shows_may_be(self) -> None:
        agent = FakeAgent({"batches": 2, "age": 77.0})
        self.assertEqual(agent.drained(), 77.0)
        self.assertLessEqual(agent.now, collecting.MOST_SECONDS)
        self.assertEqual(FakeAgent({"batches": 2, "age": None}).drained(), math.inf)

    def test_without_an_agent_of_this_version_nobody_knows_its_age(self) -> None:
        for answer in (ServerUnavailable("gone"), {"batches": 0}, {}, {"batches": 0, "age": "x"}, {"batches": 1, "age": 10**400}):
            self.assertEqual(FakeAgent(answer).drained(), math.inf)


class Shown(SynchronousTestCase):
    def test_each_mode_shows_its_processes(self) -> None:
        each = [((("pid", client),), float(SHOWN[client]["value"])) for client in sorted(SHOWN)]
        living = {"web/1", "web/3"}
        for mode, expected, of_the_living in (
            ("all", each, [each[0], each[2]]),
            ("min", [((), 3.0)], [((), 3.0)]),
            ("max", [((), 5.0)], [((), 4.0)]),
            ("sum", [((), 12.0)], [((), 7.0)]),
            ("mostrecent", [((), 5.0)], [((), 4.0)]),
        ):
            self.assertEqual(collecting.levels(mode, SHOWN, living), expected)
            self.assertEqual(collecting.levels(f"live{mode}", SHOWN, living), of_the_living)
            self.assertEqual(collecting.levels(f"live{mode}", SHOWN, set()), [])
        self.assertEqual(
            collecting.levels("sum", {"web/1": {"value": "up", "time": 1.0}, "web/2": {"value": None, "time": 1.0}}, set()), []
        )

    now = 0.0
    takes = 0.0  # seconds that each question takes
    is_cut = False  # whether a question that takes too long is given up

    def samples(self, tabs: dict[str, Any], series: list[dict[str, Any]], **declared: collecting.Declared) -> Any:
        found, self.left_out = self.samples_within(8.0, tabs, series, **declared)
        return found

    def samples_within(self, seconds: float, tabs: dict[str, Any], series: list[dict[str, Any]], **declared: collecting.Declared) -> Any:
        def pass_time(timeout: float) -> None:
            self.now += min(self.takes, timeout)
            if timeout < self.takes or self.is_cut:
                raise ServerUnavailable("no answer in time")

        class Fake:
            timeout = 0.0

            def __init__(self) -> None:
                self.asked: list[tuple[str, ...]] = []

            def alive(self, client_match: str) -> list[str]:
                pass_time(self.timeout)
                return ["web/1"]

            def projections(self, name: list[str], client_match: str) -> dict[str, Any]:
                pass_time(self.timeout)
                self.asked.append(tuple(name))
                return {tab: shown for tab, shown in tabs.items() if tab.partition("{")[0] in name}

            def ask(self, question: Question[Any]) -> Any:
                pass_time(self.timeout)
                return question.take({"data": {"result": series}})

        self.fake = Fake()
        return collecting._samples(self.fake, declared, "web/.*", collecting.Within(seconds, lambda: self.now))

    def test_what_is_whole_by_the_end_of_a_scrapes_time_is_shown_and_the_rest_is_told(self) -> None:
        counter, histogram = collecting.Declared("counter", "", "all", ()), collecting.Declared("histogram", "", "all", (1.0, math.inf))
        live = collecting.Declared("gauge", "", "liveall", ())
        many = {f"c{number:03}": counter for number in range(120)}
        tabs = {name: {"web/1": {"pct": {"count": 1, "total": 1.0}}} for name in many}
        series: list[dict[str, Any]] = [{"metric": {"__name__": "h_count"}, "value": [0, "2"]}]
        self.takes = 1.0
        # three questions of names, one of a histogram: as long as it may take, and one less each time
        for seconds, shown, left_out in ((4.0, 121, set()), (3.5, 120, {"h"}), (3.0, 120, {"h"}), (2.0, 100, 21), (0.5, 0, 121)):
            found, out = self.samples_within(seconds, tabs, series, h=histogram, **many)
            self.assertEqual((len(found), out if isinstance(left_out, set) else len(out)), (shown, left_out), seconds)
        found, out = self.samples_within(0.5, tabs, series, g=live, **many)
        self.assertEqual((found, len(out)), ({}, 121))
        found, out = self.samples_within(1.5, {"a": tabs["c000"]}, series, g=live, a=counter)
        self.assertEqual((found, out), ({}, {"a", "g"}))
        self.is_cut = True  # long before the end: that is no matter of time
        self.assertRaises(ServerUnavailable, self.samples_within, 8.0, tabs, series, a=counter)

    def test_how_long_a_scrape_may_take_is_said_and_what_is_none_is_an_error(self) -> None:
        self.assertEqual(collecting.seconds_of(None, {}), collecting.DEFAULT_SECONDS)
        self.assertEqual(
            (collecting.seconds_of(None, {collecting.SECONDS: "2.5"}), collecting.seconds_of(3, {collecting.SECONDS: "x"})), (2.5, 3)
        )
        wrong: tuple[Any, ...] = (0, -1, math.inf, math.nan, "x", [])
        for given in wrong:
            self.assertRaises(ValueError, collecting.seconds_of, given, {})
        error = self.assertRaises(ValueError, collecting.seconds_of, None, {collecting.SECONDS: "soon"})
        self.assertEqual(str(error), "TABA_COMPAT_SECONDS: 'soon': takes a number of seconds above 0, such as 8")

    def test_counters_and_summaries_are_summed_over_clients(self) -> None:
        def group(count: int, total: float | None) -> dict[str, Any]:
            return {"pct": {"count": count, "total": total}}

        counter, summary = (collecting.Declared(kind, "", "all", ()) for kind in ("counter", "summary"))
        tabs = {'a{k="v",none=""}': {"1": group(2, 3.5), "2": group(1, 1.0)}, "b": {"1": group(2, 7.0), "2": group(0, None)}, "z": {}}
        self.assertEqual(
            self.samples(tabs, [], a=counter, b=summary),
            {"a": [("a_total", (("k", "v"),), 4.5)], "b": [("b_count", (), 2.0), ("b_sum", (), 7.0)]},
        )

    def test_buckets_that_were_counted_stand_for_those_that_a_sketch_tells(self) -> None:
        histogram = collecting.Declared("histogram", "", "all", (1.0, 2.0, math.inf))
        own: dict[str, str] = {"k": "v", "exported_client": "mine", "client": "web/1"}
        series: list[dict[str, Any]] = [
            {"metric": {"__name__": "h_bucket", "le": le} | own, "value": [0, n]} for le, n in (("1", "1"), ("2.0", "3"), ("+Inf", "4"))
        ]
        series += [
            {"metric": {"__name__": f"h_{part}"} | own | {"client": f"web/{n}"}, "value": [0, "2"]}
            for part in ("sum", "count")
            for n in "12"
        ]
        labels = (("client", "mine"), ("k", "v"))
        rest = [("h_sum", labels, 4.0), ("h_count", labels, 4.0)]
        told = [("h_bucket", (*labels, ("le", le)), n) for le, n in (("1.0", 1.0), ("2.0", 3.0), ("+Inf", 4.0))]
        self.assertEqual(self.samples({}, series, h=histogram), {"h": [*told, *rest]})
        tabs = {
            f'h.bucket{{bound="{le}",client="mine",k="v"}}': {"web/1": {"pct": {"count": n, "total": n}}}
            for le, n in (("1.0", 2), ("+Inf", 2))
        }
        counted = [("h_bucket", (*labels, ("le", le)), n) for le, n in (("1.0", 2.0), ("2.0", 2.0), ("+Inf", 4.0))]
        self.assertEqual(self.samples(tabs, series, h=histogram), {"h": [*rest, *counted]})

    def test_what_cannot_be_told_fails_the_scrape(self) -> None:
        counter = collecting.Declared("counter", "", "all", ())
        self.assertRaises(ServerUnavailable, self.samples, {"a": {"error": "its shard is away"}}, [], a=counter)

    def test_no_question_names_more_than_so_many(self) -> None:
        counter = collecting.Declared("counter", "", "all", ())
        self.samples({}, [], **{f"c{number}": counter for number in range(collecting.SOME_NAMES + 1)})
        self.assertEqual([len(names) for names in self.fake.asked], [collecting.SOME_NAMES, 1])


class Declaring(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(collecting, "_declared", {})
        self.patch(metrics.MetricWrapperBase, "__init__", collecting.declaring(metrics.MetricWrapperBase.__init__))
        self.registry = CollectorRegistry()

    def test_metrics_are_known_when_they_are_made_and_their_children_are_not(self) -> None:
        Counter("hits_total", "h", ["k"], registry=self.registry).labels("v").inc()
        Gauge("depth", "d", multiprocess_mode="livesum", registry=None)
        Histogram("took", "t", buckets=(1, 2), registry=self.registry)
        self.assertEqual(
            collecting._declared,
            {
                "hits": collecting.Declared("counter", "h", "all", ()),
                "depth": collecting.Declared("gauge", "d", "livesum", ()),
                "took": collecting.Declared("histogram", "t", "all", (1.0, 2.0, math.inf)),
            },
        )

    def test_so_many_are_and_no_more(self) -> None:
        self.patch(collecting, "MAX_DECLARED", 1)
        for name in ("a", "b", "a"):
            Counter(name, "", registry=None)
        self.assertEqual(list(collecting._declared), ["a"])


class InPlaceOfTheirs(SynchronousTestCase):
    def test_a_directory_means_their_files_and_without_one_nothing_is_asked_before_a_scrape(self) -> None:
        ours = collecting.replaced(multiprocess.MultiProcessCollector)
        registry = CollectorRegistry(auto_describe=True)
        ours(registry)
        made: Callable[..., Any] = ours
        self.assertRaises(ValueError, made, None, self.mktemp())  # as theirs: it is no directory
        self.assertEqual(list(made(None, ".").collect()), [])
        self.patch(os, "environ", {"PROMETHEUS_MULTIPROC_DIR": "."})
        self.assertEqual(list(made(None).collect()), [])

    def test_a_process_that_died_is_nobodys_business_where_there_are_no_files(self) -> None:
        seen: list[Any] = []
        forget = collecting.forgetting(lambda pid, path: seen.append((pid, path)))
        self.patch(os, "environ", {})
        forget(17)
        forget(17, "here")
        self.patch(os, "environ", {"PROMETHEUS_MULTIPROC_DIR": "there"})
        forget(18)
        self.assertEqual(seen, [(17, "here"), (18, None)])

    def test_the_clients_are_those_of_this_program_on_this_host(self) -> None:
        pattern = identity.pattern("{host}:a.b+{env:X}/{slot}", {"X": "y.z"})
        for slot, matches in (("0", True), ("17", True), ("x", False), ("", False)):
            self.assertEqual(bool(re.fullmatch(pattern, f"{identity.host()}:a.b+y.z/{slot}")), matches)
        self.assertFalse(re.fullmatch(pattern, f"{identity.host()}:aXb+y.z/0"))
