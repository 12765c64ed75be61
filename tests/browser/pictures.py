"""`python -m tests.browser.pictures`: takes the pictures of the documentation anew, of a Server whose processes work for a while."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.browser.chromium import DESKTOP, PHONE, Browser
from tests.services import Services
from tests.sources import ROOT

WORK_SECONDS = 100.0  # so that a minute and its slots are there
FOLDER = ROOT / "docs" / "pictures"
TALL = (1440, 1300)
PICTURES = [
    ("home-light", "#/", DESKTOP, "light"),
    ("tab-light", "#/tab/http_seconds", TALL, "light"),
    ("tab-dark", "#/tab/http_requests", TALL, "dark"),
    ("phone-dark", "#/", PHONE, "dark"),
    ("board-dark", "#/board/shop", (1440, 620), "dark"),
]
BOARD = ['http_requests{route="/search"}', 'http_seconds{route="/cart"}', "queue_depth", "search_words", "visitors", "requests_in_flight"]
WORK = """
import math, random, sys, time
from taba import client
me = int(sys.argv[1])
client.start(f"{['web-1', 'web-2', 'jobs-1'][me % 3]}:shop/{me}")
routes = ("/cart", "/login", "/search")
requests = [client.counter("http_requests", labels={"route": route}, description="requests served") for route in routes]
seconds = [client.percentile("http_seconds", labels={"route": route}, unit="seconds", description="until the answer") for route in routes]
depth, busy, version = client.gauge("queue_depth"), client.updown("requests_in_flight"), client.gauge("version")
words, visitors = client.tab("search_words", type="TopK"), client.tab("visitors", type="Cardinality")
others = [client.counter(f"{a}.{b}.{c}") for a in ("billing", "mail", "db") for b in ("read", "write") for c in ("ok", "failed", "late")]
version.set("1.4" if me else "1.3")
while True:
    wave = 1 + 0.4 * math.sin(time.time() / 17)
    for _ in range(int(8 * wave) + me):
        place = random.choices(range(3), [5, 1, 9])[0]
        with busy.track():
            requests[place].inc()
            slow = 6 if me == 2 and place != 1 else 1
            seconds[place].observe(random.lognormvariate(-3.6 + place / 2, 0.6) * slow * wave)
        random.choices(others, [1 / (n + 1) for n in range(len(others))])[0].inc()
    depth.set(int(20 + 15 * math.sin(time.time() / 9) + 4 * random.random()))
    words.record(random.choices(["red shoe", "blue hat", "scarf", "coat"], [8, 4, 2, 1])[0])
    visitors.record(f"u{random.randrange(9000)}")
    time.sleep(0.05)
"""


def main() -> None:
    """Take them."""
    services = Services(buckets=64)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        services.start_server()
        services.start_agent()
        workers += [
            subprocess.Popen([sys.executable, "-c", WORK, str(number)], env=services.environ, cwd=services.directory) for number in range(5)
        ]
        time.sleep(WORK_SECONDS)
        browser = Browser(Path(services.directory) / "profile")
        try:
            put = "fetch('/v1/boards/shop', {method: 'PUT', body: JSON.stringify({tabs: arguments[0]})})"
            browser.open(services.server_url)
            browser.run(put, BOARD)
            browser.run("fetch('/v1/notes', {method: 'POST', body: JSON.stringify({text: 'deploy 1.4', time: Date.now() / 1000 - 45})})")
            for name, place, size, scheme in PICTURES:
                browser.resize(size)
                browser.prefer(scheme)
                browser.open(f"{services.server_url}/{place}")
                browser.until(lambda: browser.texts(".rate, .large dd, .card .value"))
                time.sleep(6.0)  # what is live has come, and been drawn
                if name == "tab-dark":
                    browser.run("const s = document.querySelector('.past select'); s.value = 'route'; s.dispatchEvent(new Event('change'))")
                browser.picture(FOLDER / f"{name}.png")
        finally:
            browser.stop()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        services.stop()


if __name__ == "__main__":
    main()
