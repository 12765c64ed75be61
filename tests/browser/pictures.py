"""`python -m tests.browser.pictures [NAME…]`: takes the pictures of the documentation anew, or some, of a Server that knows a day."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.browser.chromium import DESKTOP, PHONE, Browser
from tests.services import Services
from tests.sources import ROOT

WORK_SECONDS = 70.0  # so that a minute of what is live is there
PAST_SECONDS, STEP_SECONDS = 80 * 60, 15  # of what is told to have happened before …
LONG_AGO_SECONDS, LONG_STEP_SECONDS = 26 * 3600, 300  # … and in the day before that
LIVE_SECONDS, LOOK_SECONDS = 62.0, 15.0  # what is drawn since one looks has come; all else has
FOLDER = ROOT / "docs" / "pictures"
TALL = (1440, 1300)
# name, place, size, light or dark, keys that are pressed there
PICTURES = [
    ("home-light", "#/", DESKTOP, "light", ""),
    ("tab-light", "#/tab/http_seconds", TALL, "light", "3"),
    ("tab-dark", "#/tab/http_requests", TALL, "dark", "3"),
    ("phone-dark", "#/", PHONE, "dark", ""),
    ("board-dark", "#/board/shop", (1040, 650), "dark", ""),
    ("processes-light", "#/processes", (1240, 560), "light", ""),
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
others = [client.counter(name) for name in sys.argv[2:]]
version.set("1.4" if me else "1.3")
while True:
    wave = 1 + 0.4 * math.sin(time.time() / 17 + me)
    for _ in range(int(8 * wave) + me):
        place = random.choices(range(3), [5, 1, 9])[0]
        requests[place].inc()
        slow = 6 if me == 2 and place != 1 else 1
        seconds[place].observe(random.lognormvariate(-3.6 + place / 2, 0.6) * slow * wave)
        random.choices(others, [(1 + 0.5 * math.sin(time.time() / (9 + n) + n)) / (n + 1) for n in range(len(others))])[0].inc()
    depth.set(int(20 + 15 * math.sin(time.time() / 9) + 4 * random.random()))
    words.record(random.choices(["red shoe", "blue hat", "scarf", "coat"], [8, 4, 2, 1])[0])
    visitors.record(f"u{random.randrange(9000)}")
    busy.inc(many := random.randrange(4))
    time.sleep(0.05)
    busy.dec(many)
"""
PROCESSES = 5
OTHERS = [f"{a}.{b}.{c}" for a in ("billing", "mail", "db") for b in ("read", "write") for c in ("ok", "failed", "late")]
HOSTS = ("web-1", "web-2", "jobs-1")
ROUTES = (("/cart", 5, -3.6), ("/login", 1, -3.1), ("/search", 9, -2.6))


def tell_of_the_past(services: Services, now: float) -> None:
    """What the processes would have recorded in the hour before, as far as pictures show it, with waves and one bad quarter."""
    chance = random.Random(1)
    for me in range(PROCESSES):
        events: list[Any] = []
        steps = [(step, LONG_STEP_SECONDS) for step in range(-LONG_AGO_SECONDS, -PAST_SECONDS, LONG_STEP_SECONDS)]
        steps += [(step, STEP_SECONDS) for step in range(-PAST_SECONDS, 0, STEP_SECONDS)]
        for step, seconds in steps:
            at = now + step
            wave = 1 + 0.4 * math.sin(at / 170) + 0.15 * math.sin(at / 41) if seconds == STEP_SECONDS else 1 + 0.5 * math.sin(at / 11_000)
            wave *= seconds / STEP_SECONDS
            is_bad = -2100 < step < -1300
            for route, weight, usual in ROUTES:
                labels = {"route": route}
                many = max(1, round(150 * weight * wave * (0.55 if is_bad else 1) + chance.random()))
                events.append({"tab": "http_requests", "labels": labels, "type": "CounterGroup", "value": [1, many], "time": at})
                slow = (3 if is_bad and route == "/cart" else 1) * wave * STEP_SECONDS / seconds
                for _ in range(8):
                    value, times = chance.lognormvariate(usual, 0.6) * slow, max(1, many // 8)
                    events.append({"tab": "http_seconds", "labels": labels, "type": "PercentileGroup", "value": [value, times], "time": at})
            for place, other in enumerate(OTHERS):
                own = 1 + 0.45 * math.sin(at / (190 + 45 * place) + place) + 0.2 * math.sin(at / (37 + 5 * place))
                many = max(1, round(700 * own * seconds / STEP_SECONDS / (place + 1) * chance.uniform(0.9, 1.1)))
                events.append({"tab": other, "type": "CounterGroup", "value": [1, many], "time": at})
        for start in range(0, len(events), 5000):
            services.query.post_events(f"{HOSTS[me % 3]}:shop/{me}", events[start : start + 5000])


def main() -> None:
    """Take them."""
    services = Services(buckets=64)
    workers: list[subprocess.Popen[bytes]] = []

    def work(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORK, str(number), *OTHERS]
        return subprocess.Popen(command, env=services.environ, cwd=services.directory)

    try:
        services.start_server()
        services.start_agent()
        began = time.time()
        workers += map(work, range(PROCESSES))
        tell_of_the_past(services, began)
        time.sleep(WORK_SECONDS)
        workers[1].kill()  # it is started again before the reader's eyes
        workers[1].wait()
        workers[1] = work(1)
        browser = Browser(Path(services.directory) / "profile")
        try:
            put = "fetch('/v1/boards/shop', {method: 'PUT', body: JSON.stringify({tabs: arguments[0]})})"
            browser.open(services.server_url)
            browser.run(put, BOARD)
            browser.run("fetch('/v1/notes', {method: 'POST', body: JSON.stringify({text: 'deploy 1.4', time: Date.now() / 1000 - 2100})})")
            wanted = sys.argv[1:] or [name for name, *_ in PICTURES]
            for name, place, size, scheme, pressed in PICTURES:
                if name not in wanted:
                    continue
                browser.resize(size)
                browser.prefer(scheme)
                browser.open(f"{services.server_url}/{place}")
                browser.until(lambda: browser.texts(".rate, .large dd, .card .value, td .lamp"))
                time.sleep(LIVE_SECONDS if place in ("#/", "#/board/shop") else LOOK_SECONDS)
                if pressed:
                    browser.press(pressed)
                if name == "tab-dark":
                    browser.run("const s = document.querySelector('.past select'); s.value = 'route'; s.dispatchEvent(new Event('change'))")
                time.sleep(1.0)
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
