"""Real clients: Prometheus scrapes, promtool asks, vmalert evaluates and fires into Alertmanager."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS
from tests.processes import Process, free_port, wait_for_port
from tests.services import START_SECONDS, Services

RECORDS = """
import sys
from taba import client
for _ in range(int(sys.argv[1])):
    client.counter("agent_hits", labels={"route": "/a"}).inc(1.5)
    client.percentile("agent_wait_seconds").observe(0.25)
"""

# asked of Taba and of a Prometheus that scraped it, while nothing is recorded: what both must answer alike
ALIKE = (
    "hits_total",
    "sum(hits_total)",
    "sum by (route) (hits_total)",
    "sum without (route) (hits_total)",
    'hits_total{route=~"/[ab]"} > 1',
    "hits_total / on (route) hits_events_total",
    "hits_total * on (route) group_left () hits_events_total",
    "topk(1, hits_total)",
    "bottomk(1, hits_total)",
    "quantile(0.5, hits_total)",
    "count(hits_total)",
    "hits_total > bool 2",
    "hits_total and on (route) hits_events_total > 1",
    "hits_total unless on (route) hits_events_total > 1",
    "-abs(hits_total) + 2 ^ 3",
    "clamp(hits_total, 1, 2)",
    "wait_seconds_bucket",
    "histogram_quantile(0.9, wait_seconds_bucket)",
    "wait_seconds_sum / wait_seconds_count",
    'label_replace(hits_total, "page", "p-$1", "route", "/(.*)")',
    "absent(nothing)",
    "round(avg(wait_seconds_sum), 0.1)",
)
# of what moved between scrapes: rates of Prometheus are extrapolated to the window's ends, those of Taba are what lies within it
WINDOW_SECONDS = 600.0
BEFORE_SECONDS = 100.0  # the moves are so old: within the window, and in slots that are over
RATES = (  # (expression, the power in which that extrapolation is in it)
    ("sum(rate(moved_total[10m]))", 1),
    ("sum by (route) (increase(moved_total[10m]))", 1),
    ('rate(moved_events_total{route="/a"}[10m])', 1),
    ("rate(took_seconds_count[10m])", 1),
    ("rate(took_seconds_sum[10m])", 1),
    ("rate(took_seconds_bucket[10m])", 1),
    ("topk(1, rate(moved_total[10m]))", 1),
    ("avg(rate(moved_total[10m])) * 60", 1),
    ("rate(took_seconds_sum[10m]) / rate(took_seconds_count[10m])", 0),
    ("sum by (route) (rate(moved_total[10m])) / on () group_left () sum(rate(moved_total[10m]))", 0),
    ("histogram_quantile(0.9, sum by (le) (rate(took_seconds_bucket[10m])))", 0),
    ("histogram_quantile(0.5, rate(took_seconds_bucket[10m]))", 0),
)
OF_SCRAPES = {"job", "instance"}  # labels that a scrape adds


def ask(url: str, path: str, parameters: dict[str, Any] | None = None) -> Any:
    with urlopen(Request(f"{url}{path}?{urlencode(parameters or {})}"), timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


def vector(url: str, text: str, at: float) -> dict[Any, float]:
    result = ask(url, "/api/v1/query", {"query": text, "time": at})["data"]["result"]
    return {
        tuple(sorted((name, value) for name, value in row["metric"].items() if name not in OF_SCRAPES)): float(row["value"][1])
        for row in result
    }


def extrapolation(times: list[float], at: float) -> float:
    """By how much the rate of a Prometheus that has samples of these times is greater than what they grew by: it goes on to the
    window's ends, as far as a sample more was to be expected."""
    sampled = times[-1] - times[0]
    usual = sampled / (len(times) - 1)
    ends = (times[0] - (at - WINDOW_SECONDS), at - times[-1])
    return (sampled + sum(end if end < 1.1 * usual else usual / 2 for end in ends)) / sampled


def samples(url: str, selector: str) -> list[tuple[float, float]]:
    """(time, value) of all that a Prometheus has scraped of one series within the window."""
    found = ask(url, "/api/v1/query", {"query": f"{selector}[{WINDOW_SECONDS:.0f}s]", "time": time.time()})
    return [(at, float(value)) for row in found["data"]["result"] for at, value in row["values"]]


def is_ready(url: str) -> bool:
    """Whether a Prometheus has read what it keeps: until then it listens, and answers 503."""
    try:
        with urlopen(f"{url}/-/ready", timeout=PATIENCE_SECONDS):
            return True
    except HTTPError as error:
        return error.code != 503


class PrometheusCase(SynchronousTestCase):
    """A Server, an Agent and programs that ask them, as processes of their own."""

    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def post(self, events: list[dict[str, Any]]) -> None:
        body = json.dumps({"client": "web/1", "events": events}).encode()
        with urlopen(Request(f"{self.services.server_url}/v1/events", body), timeout=PATIENCE_SECONDS) as answer:
            self.assertEqual(json.load(answer)["rejected"], [])

    def start(self, name: str, *arguments: str) -> str:
        """A program that listens at a free port, which stands for PORT in its arguments; its address."""
        port = free_port()
        texts = [argument.replace("PORT", str(port)) for argument in arguments]
        child = Process(name, texts, self.services.directory, self.services.environ)
        self.services.children.append(child)
        wait_for_port(child, port, START_SECONDS)
        return f"http://127.0.0.1:{port}"

    def start_prometheus(self, match: str, **ports: int) -> str:
        """A Prometheus that scrapes these Tabs each second of each job, which is named for what listens there; its address."""
        directory = self.services.directory
        jobs = "".join(
            f"  - job_name: {job}\n    params: {{match: ['{match}']}}\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
            for job, port in ports.items()
        )
        (directory / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}")
        prometheus = self.start(
            "prometheus",
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            "--web.listen-address=127.0.0.1:PORT",
        )
        self.until(lambda: is_ready(prometheus))
        return prometheus

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = condition()
            if found:
                return found
            self.assertLess(time.monotonic(), deadline, "it did not come about")
            time.sleep(0.1)


@pytest.mark.real
class Clients(PrometheusCase):
    def record(self) -> None:
        events: list[dict[str, Any]] = []
        before = time.time() - 100  # so that the slots in which these lie are over, and what they come to is the same at any time asked
        for route, many in (("/a", 1), ("/b", 2), ("/c", 5)):
            events += [{"tab": "hits", "type": "CounterGroup", "value": 1.5, "time": before, "labels": {"route": route}}] * many
        events += [{"tab": "wait_seconds", "type": "PercentileGroup", "value": value / 10, "time": before} for value in range(1, 30)]
        self.post(events)

    def test_prometheus_that_scraped_and_taba_answer_alike(self) -> None:
        needs_program("prometheus")
        needs_program("promtool")
        self.services.start_server()
        self.record()
        prometheus = self.start_prometheus("hits.*|wait.*|moved.*|took.*", tabs=self.services.server_port)
        self.until(lambda: vector(prometheus, "hits_total", time.time()))
        scraped = time.time()
        for text in ALIKE:
            ours, theirs = vector(self.services.server_url, text, scraped), vector(prometheus, text, scraped)
            self.assertTrue(ours, text)
            self.assertEqual(ours.keys(), theirs.keys(), text)
            for key, value in ours.items():
                self.assertAlmostEqual(value, theirs[key], places=9, msg=f"{text} {key}")
        self.move(prometheus)
        # through a kill of the Server a counter goes on from where it was
        self.services.kill_server()
        self.until(lambda: list(vector(prometheus, "up", time.time()).values()) == [0.0])
        self.services.start_server()
        self.post([{"tab": "hits", "type": "CounterGroup", "value": 1.5, "labels": {"route": "/a"}}])
        self.until(lambda: list(vector(prometheus, 'hits_total{route="/a"}', time.time()).values()) == [3.0])
        self.assertEqual(set(vector(prometheus, "resets(hits_total[5m])", time.time()).values()), {0.0})
        first, *_, last = samples(prometheus, 'hits_total{route="/a"}')
        self.assertEqual((first[1], last[1]), (1.5, 3.0))
        # the one curve; of a slot that is not over all is known at its end only
        self.until(lambda: list(vector(self.services.server_url, 'hits_total{route="/a"}', time.time()).values()) == [last[1]])
        self.assertEqual(list(vector(self.services.server_url, 'hits_total{route="/a"}', first[0]).values()), [first[1]])
        for arguments in (
            ("instant", "sum(rate(hits_total[5m]))"),
            ("range", "--step=15s", "sum(rate(hits_total[5m]))"),
            ("series", "--match=hits_total"),
            ("labels", "route"),
        ):
            kind, *rest = arguments
            place = len(rest) if kind == "series" else len(rest) - 1
            command = ["promtool", "query", kind, *rest[:place], self.services.server_url, *rest[place:]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual((done.returncode, bool(done.stdout.strip())), (0, True), (command, done.stderr))
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=self.scraped("hits.*|wait.*"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertNotIn("error", done.stderr.lower(), done.stderr)

    def move(self, prometheus: str) -> None:
        """Counters move between scrapes, and rates are those of Prometheus but for its extrapolation, which its samples tell."""
        routes = ("/a", "/b")

        def grow(times: int, age: float) -> None:
            at = time.time() - age
            self.post(
                [
                    {"tab": "moved", "type": "CounterGroup", "value": 2.5, "time": at, "labels": {"route": route}}
                    for place, route in enumerate(routes)
                    for _ in range(times * (place + 1))
                ]
                # much in the first bin: of buckets that begin with little Prometheus goes on no further than to where they were 0
                + [{"tab": "took_seconds", "type": "PercentileGroup", "value": [0.001, 50 * times], "time": at}]
                + [{"tab": "took_seconds", "type": "PercentileGroup", "value": value / 7, "time": at} for value in range(times)]
            )

        def moves() -> list[tuple[float, float]]:
            return samples(prometheus, 'moved_events_total{route="/a"}')

        grow(90, 3 * WINDOW_SECONDS)  # what Prometheus sees first is no move to it
        self.until(moves)
        recorded = 90
        for times in (5, 9, 2):
            grow(times, BEFORE_SECONDS)
            recorded += times
            self.until(partial(lambda wanted: moves()[-1][1] == wanted, recorded))
        at = moves()[-1][0]
        self.until(lambda: moves()[-1][0] > at + 2)  # of the last second Taba tells what came until now
        more = extrapolation([time for time, _ in moves() if time <= at], at)
        for text, power in RATES:
            ours, theirs = vector(self.services.server_url, text, at), vector(prometheus, text, at)
            self.assertTrue(ours, text)
            self.assertEqual(ours.keys(), theirs.keys(), text)
            for key, value in ours.items():
                self.assertAlmostEqual(value * more**power / theirs[key], 1.0, places=6, msg=f"{text} {key}: extrapolated by {more}")

    def test_an_agent_tells_what_its_host_records_and_begins_anew_with_each_start(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        url = f"{self.services.agent_url}/metrics?{urlencode({'match': 'agent_hits.*|agent_wait.*'})}"

        def found() -> dict[str, float]:
            with urlopen(
                Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}), timeout=PATIENCE_SECONDS
            ) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            return {sample.name: sample.value for family in families for sample in family.samples if sample.name.startswith("agent_")}

        created = 0.0
        for times in (5, 2):
            done = self.services.run("-c", RECORDS, str(times))
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.until(partial(lambda wanted: found().get("agent_hits_events_total") == wanted, times))
            told = found()
            self.assertEqual((told["agent_hits_total"], told["agent_wait_seconds_count"]), (1.5 * times, times))
            self.assertAlmostEqual(told["agent_wait_seconds_sum"], 0.25 * times)
            self.assertGreater(told["agent_hits_created"], created)
            created = told["agent_hits_created"]
            self.services.kill_agent()
            self.services.start_agent()

    def test_prometheus_scrapes_an_agent_through_its_restart_and_no_increase_is_lost_or_told_twice(self) -> None:
        needs_program("prometheus")
        self.services.start_server()
        self.services.start_agent()
        prometheus = self.start_prometheus("agent_hits.*", tabs=self.services.agent_port)
        told = 0

        def record(times: int) -> None:
            nonlocal told
            done = self.services.run("-c", RECORDS, str(times))
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            told += times
            self.until(lambda: (seen := samples(prometheus, "agent_hits_events_total")) and seen[-1][1] == told)

        record(5)
        record(4)
        self.services.kill_agent()
        self.until(lambda: list(vector(prometheus, "up", time.time()).values()) == [0.0])
        self.services.start_agent()
        told = 0  # a restart is a reset
        record(2)
        record(3)
        seen = [value for _, value in samples(prometheus, "agent_hits_events_total")]
        self.assertEqual([value for place, value in enumerate(seen) if not place or value != seen[place - 1]], [5, 9, 2, 5])
        at = samples(prometheus, "agent_hits_events_total")[-1][0]
        more = extrapolation([time for time, _ in samples(prometheus, "agent_hits_events_total") if time <= at], at)
        for text, expected in (
            ("resets(agent_hits_events_total[10m])", 1.0),
            (f"increase(agent_hits_events_total[10m]) / {more}", 9.0),  # all but the first five, which no Prometheus sees come
            (f"increase(agent_hits_total[10m]) / {more}", 13.5),
        ):
            [found] = vector(prometheus, text, at).values()
            self.assertAlmostEqual(found, expected, places=6, msg=text)
        # the States have every one once, whatever was reset where
        self.until(lambda: vector(self.services.server_url, "sum(agent_hits_events_total)", time.time()) == {(): 14.0})

    def scraped(self, match: str) -> str:
        with urlopen(f"{self.services.server_url}/metrics?{urlencode({'match': match})}", timeout=PATIENCE_SECONDS) as answer:
            text: str = answer.read().decode()
            return text

    def test_vmalert_evaluates_rules_against_taba_and_fires_into_alertmanager(self) -> None:
        needs_program("vmalert")
        needs_program("prometheus-alertmanager")
        self.services.start_server()
        self.record()
        directory = self.services.directory
        (directory / "alertmanager.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
        (directory / "rules.yml").write_text(
            "groups:\n"
            "  - name: taba\n"
            "    rules:\n"
            "      - alert: ManyHits\n"
            "        expr: sum by (route) (increase(hits_total[1h])) > 7\n"
            "      - alert: Never\n"
            "        expr: sum(increase(hits_total[1h])) > 1000\n"
        )
        alertmanager = self.start(
            "alertmanager",
            "prometheus-alertmanager",
            f"--config.file={directory / 'alertmanager.yml'}",
            f"--storage.path={directory / 'alerts'}",
            "--cluster.listen-address=",
            "--web.listen-address=127.0.0.1:PORT",
        )
        self.start(
            "vmalert",
            "vmalert",
            f"-datasource.url={self.services.server_url}",
            f"-notifier.url={alertmanager}",
            f"-rule={directory / 'rules.yml'}",
            "-evaluationInterval=1s",
            "-httpListenAddr=127.0.0.1:PORT",
        )
        alerts = self.until(lambda: ask(alertmanager, "/api/v2/alerts"))
        labels = [{name: value for name, value in alert["labels"].items() if name in ("alertname", "route")} for alert in alerts]
        self.assertEqual(labels, [{"alertname": "ManyHits", "route": "/c"}])
