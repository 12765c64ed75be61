"""Events posted over HTTP, to whoever is nearest."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS

from .services import Services


class Posting(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.services.start_server()
        self.services.start_agent()

    def post(self, url: str, events: list[Any], key: str) -> Any:
        body = json.dumps({"client": "web/1", "events": events}).encode()
        request = urllib.request.Request(f"{url}/v1/events", body, {"Idempotency-Key": key, "Content-Type": "application/json"})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # the Agent learns the number of buckets from the Server first
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def test_one_key_at_server_and_agent_in_either_order_counts_once_whatever_its_size(self) -> None:
        events = [{"tab": "texts", "type": "Buffer", "value": "x" * 400}] * 4000
        urls = [self.services.server_url, self.services.agent_url]
        for key, order in [("server first", urls), ("agent first", urls[::-1])]:
            for url in order:
                self.assertEqual(self.post(url, events, key)["accepted"], len(events))
        self.post(self.services.agent_url, [{"tab": "last", "type": "TotalsCounter", "value": 1}], "last")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.services.query.names(name="last") or self.services.query.status()["folded"] < 8001:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        time.sleep(1.5)  # for what must not come: a Server's counts are a second old at the most
        self.assertEqual(self.services.query.status()["folded"], 8001)
