"""What tests of the page share: a browser beside a real Server, Agent and a process that records."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

from tests.browser.chromium import DESKTOP, Browser, shared
from tests.services import BesideAServer

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'
UNUSUAL = ("constructor", "toString")  # which every object of a script has, too

RECORDS = """
import random, sys, time
from taba import client
client.start("web:1")
seconds = [client.percentile("http_seconds", labels={"route": route}, unit="seconds") for route in ("/cart", "/search")]
hits, odd = client.counter("hits"), client.counter("odd", labels={"x": sys.argv[1]})
depth, words = client.gauge("queue_depth"), client.tab("words", type="TopK")
while True:
    for tab in seconds:
        tab.observe(random.lognormvariate(-3, 0.5))
    hits.inc(); odd.inc(); depth.set(random.randrange(50)); words.record(random.choice(["red", "red", "blue"]))
    time.sleep(0.02)
"""


class WithBrowser(BesideAServer):
    """Tests that share a Server, an Agent and a process that records."""

    browser: ClassVar[Browser]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.services.start_agent()
        arguments = [sys.executable, "-c", RECORDS, HOSTILE]
        recorder = subprocess.Popen(arguments, env=cls.services.environ, cwd=cls.services.directory)
        cls.addClassCleanup(recorder.wait)
        cls.addClassCleanup(recorder.kill)
        events: list[Any] = [{"tab": f"many.{n // 100}.{n}", "type": "CounterGroup", "value": 1} for n in range(1000)]
        cls.services.query.post_events("batch/1", events)
        cls.services.query.post_events("batch/1", [{"tab": "lost", "type": "NoSuchType", "value": HOSTILE}])
        for number in range(4):
            cls.services.query.post_events(
                f"web:b/{number}", [{"tab": "slow", "type": "PercentileGroup", "value": 5.0 if number == 2 else 0.1}]
            )
        cls.services.query.post_events("batch/1", [{"tab": "edge", "type": "PercentileGroup", "value": value} for value in (0.0154, 0.3)])
        for name in UNUSUAL:  # each a Client, and a Tab
            both: list[Any] = [{"tab": f'both{{x="{value}"}}', "type": "CounterGroup", "value": 1} for value in ("a", "b")]
            cls.services.query.post_events(name, [*both, {"tab": name, "type": "CounterGroup", "value": 1}])
        cls.browser = shared[0]

    def setUp(self) -> None:
        self.browser.resize(DESKTOP)
        self.browser.prefer("light")
        self.browser.said()

    def tearDown(self) -> None:
        self.assertIsNone(self.browser.run("return window.harmed ?? null"))

    def open(self, place: str = "#/") -> None:
        self.browser.open(f"{self.services.server_url}/{place}")

    def go(self, place: str) -> None:
        """Another view of the page that is open."""
        self.browser.run("location.hash = arguments[0]", place)
        self.browser.until(lambda: self.browser.run("return document.querySelector('#view h1') !== null"))
