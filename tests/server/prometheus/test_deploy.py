"""What is shipped for others to run asks only what Taba answers."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.server.prometheus.evaluate import FUNCTIONS, _leaves
from taba.server.prometheus.metrics import MATCH
from taba.server.prometheus.syntax import Called, check, flattened, nodes_of
from tests.services import ROOT

DEPLOY = ROOT / "deploy"
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$counter": "hits_total", "$distribution": "wait_seconds", "$client": ".+"}


def is_answered(text: str) -> None:
    check(text)
    nodes = nodes_of(flattened(text))
    _leaves(nodes)  # raises where a selector, or what stands above it, is none that is answered
    unknown = [node.name for node in nodes if isinstance(node, Called) and node.name not in FUNCTIONS]
    assert not unknown, unknown


class Shipped(SynchronousTestCase):
    def test_the_dashboards_panels_are_answered(self) -> None:
        dashboard: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "taba.json").read_text())
        texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        self.assertGreaterEqual(len(texts), 8)
        for text in texts:
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            self.assertNotIn("$", text)
            is_answered(text)
        for variable in dashboard["templating"]["list"]:
            found = re.fullmatch(r"label_values\((?:(.*), )?(\w+)\)", variable["query"]["query"])
            assert found is not None
            if found[1]:
                is_answered(found[1])

    def test_the_rules_are_answered(self) -> None:
        rules = (DEPLOY / "vmalert" / "rules.yml").read_text()
        texts = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
        self.assertEqual(len(texts), rules.count("alert:"))
        for text in texts:
            is_answered(text)

    def test_what_prometheus_is_told_to_scrape_and_to_watch_is_there(self) -> None:
        scraped, rules = ((DEPLOY / "prometheus" / name).read_text() for name in ("prometheus.yml", "rules.yml"))
        texts = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
        self.assertEqual(len(texts), rules.count("alert:"))
        written = "".join(path.read_text() for path in (ROOT / "taba").rglob("*.py"))
        for text in texts:
            check(text)
            for name in re.findall(r"\btaba_\w+", text):
                self.assertIn(f'"{name}"', written)
        jobs = set(re.findall(r"job_name: (\S+)", scraped))
        for pattern in re.findall(r'job=~"([^"]*)"', rules):
            self.assertTrue([job for job in jobs if re.fullmatch(pattern, job)], pattern)
        self.assertIn(f"params:\n      {MATCH.name}:", scraped)
