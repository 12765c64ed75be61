"""The API as it describes itself: whatever the description allows, and whatever it does not, is answered as it says."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.query.questions import Question
from tests.patience import PATIENCE_SECONDS, until
from tests.services import ANSWER_SECONDS, Services

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
)
STRICT = "negative_data_rejection"  # Prometheus' own routes take what they do not know
REFUSED = """
[checks.negative_data_rejection]
expected-statuses = [400, 403, 404, 405, 413, 414, 415, 422, 431]
"""
VALUES = ("", "hits", "page:a", "page", "(", "(a|b)*c", ".*", "\0", "é\U0001f600", "x" * 3000, "1", "web/1", "*", '{"a"}')


@pytest.mark.real
class Described(SynchronousTestCase):
    def start(self) -> Services:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        events: list[Any] = [{"tab": "hits", "type": "CounterGroup", "value": 1, "labels": {"page": "a"}}]
        services.query.post_events("web/1", [*events, {"tab": "odd", "type": "NoSuchType", "value": 1}])
        return services

    def check(self, services: Services, url: str, *more: str) -> None:
        (services.directory / "schemathesis.toml").write_text(REFUSED)  # found where it is run
        asked = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
        bounds = ["--phases", "fuzzing", "--max-examples", "3", "--seed", "1", "--generation-database", "none", "--no-color"]
        patience = ["--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off"]
        # events never end, see below; what Agents send is no JSON
        left_out = ["--exclude-path", "/v1/stream", "--exclude-path", "/v1/envelopes"]
        done = subprocess.run(
            [*asked, *bounds, *patience, *left_out, *more],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            cwd=services.directory,
            env={**services.environ, "PYTHONPATH": ""},
        )
        self.assertEqual(done.returncode, 0, done.stdout[-5000:] + done.stderr[-2000:])
        self.assertIn("Test cases:", done.stdout)

    def test_tabas_own_routes(self) -> None:
        services = self.start()
        self.check(services, services.server_url, "--exclude-path-regex", "^/api/v1/", "--checks", ",".join((*CHECKS, STRICT)))

    def test_prometheus_routes(self) -> None:
        services = self.start()
        self.check(services, services.server_url, "--include-path-regex", "^/api/v1/", "--checks", ",".join(CHECKS))

    def test_the_routes_of_an_agent_and_events_that_never_end(self) -> None:
        services = self.start()
        services.start_agent()
        until(lambda: is_ready(services.agent_url))
        self.check(services, services.agent_url, "--exclude-path", "/metrics", "--checks", ",".join((*CHECKS, STRICT)))
        self.check(services, services.agent_url, "--include-path", "/metrics", "--checks", ",".join(CHECKS))  # as Prometheus' own
        described = services.query.ask(Question("/openapi.json", (), dict, lambda told: told))["paths"]["/v1/stream"]["get"]
        names = [parameter["name"] for parameter in described["parameters"]]
        chance = Random(1)
        heard: set[int] = set()
        for number in range(60):
            asked = [("name", chance.choice(("hits", "h*", "odd", "nothing", "*")))] if number % 4 else []
            asked += [(name, chance.choice(VALUES)) for name in chance.sample([*names, "unknown"], chance.randrange(3))]
            with closing(http.client.HTTPConnection("127.0.0.1", services.server_port, timeout=ANSWER_SECONDS)) as connection:
                connection.request("GET", "/v1/stream?" + urlencode(asked))
                answer = connection.getresponse()
                heard.add(answer.status)
                self.assertIn(answer.status, (200, 400), asked)  # `default` of the description stands for 400
                kind = answer.getheader("content-type")
                if answer.status == 200:
                    self.assertEqual(kind, "text/event-stream")
                    lines = [answer.readline(1 << 20) for _ in range(2)]
                    self.assertEqual(lines[0][:4], b"id: ")
                    self.assertIn("aggregates", json.loads(lines[1].removeprefix(b"data: ")))
                else:
                    self.assertEqual((kind, sorted(json.loads(answer.read()))), ("application/json", ["detail", "error"]), asked)
        self.assertLessEqual({200, 400}, heard)


def is_ready(url: str) -> bool:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_SECONDS)) as connection:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
