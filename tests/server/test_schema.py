"""The API as it describes itself: whatever the description allows, and whatever it does not, is answered as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS
from tests.services import Services

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


@pytest.mark.real
class Described(SynchronousTestCase):
    def check(self, *more: str) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        events: list[Any] = [{"tab": "hits", "type": "CounterGroup", "value": 1, "labels": {"page": "a"}}]
        services.query.post_events("web/1", [*events, {"tab": "odd", "type": "NoSuchType", "value": 1}])
        (services.directory / "schemathesis.toml").write_text(REFUSED)  # found where it is run
        asked = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{services.server_url}/openapi.json"]
        bounds = ["--phases", "fuzzing", "--max-examples", "3", "--seed", "1", "--generation-database", "none", "--no-color"]
        patience = ["--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off"]
        # events never end; what Agents send is no JSON
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
        self.check("--exclude-path-regex", "^/api/v1/", "--checks", ",".join((*CHECKS, STRICT)))

    def test_prometheus_routes(self) -> None:
        self.check("--include-path-regex", "^/api/v1/", "--checks", ",".join(CHECKS))
