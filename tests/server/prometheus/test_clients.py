"""Real clients: Prometheus scrapes, promtool asks, vmalert evaluates and fires into Alertmanager."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs_program
from tests.processes import Process, free_port, wait_for_port
from tests.services import START_SECONDS, Services

PATIENCE_SECONDS = 60.0  # for what takes a second or two on a machine that is not busy

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


def is_ready(url: str) -> bool:
    """Whether a Prometheus has read what it keeps: until then it listens, and answers 503."""
    try:
        with urlopen(f"{url}/-/ready", timeout=PATIENCE_SECONDS):
            return True
    except HTTPError as error:
        return error.code != 503


@pytest.mark.real
class Clients(SynchronousTestCase):
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

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = condition()
            if found:
                return found
            self.assertLess(time.monotonic(), deadline, "it did not come about")
            time.sleep(0.1)

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
        directory = self.services.directory
        (directory / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            "  - job_name: tabs\n"
            '    params: {match: ["hits.*|wait.*"]}\n'
            f'    static_configs: [{{targets: ["127.0.0.1:{self.services.server_port}"]}}]\n'
        )
        prometheus = self.start(
            "prometheus",
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            "--web.listen-address=127.0.0.1:PORT",
        )
        self.until(lambda: is_ready(prometheus))
        self.until(lambda: vector(prometheus, "hits_total", time.time()))
        scraped = time.time()
        for text in ALIKE:
            ours, theirs = vector(self.services.server_url, text, scraped), vector(prometheus, text, scraped)
            self.assertTrue(ours, text)
            self.assertEqual(ours.keys(), theirs.keys(), text)
            for key, value in ours.items():
                self.assertAlmostEqual(value, theirs[key], places=9, msg=f"{text} {key}")
        # through a kill of the Server a counter goes on from where it was
        self.services.kill_server()
        self.until(lambda: list(vector(prometheus, "up", time.time()).values()) == [0.0])
        self.services.start_server()
        self.post([{"tab": "hits", "type": "CounterGroup", "value": 1.5, "labels": {"route": "/a"}}])
        self.until(lambda: list(vector(prometheus, 'hits_total{route="/a"}', time.time()).values()) == [3.0])
        self.assertEqual(set(vector(prometheus, "resets(hits_total[5m])", time.time()).values()), {0.0})
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
