"""Eight browsers look on at 10,000 Tabs of 50 Clients: how many States are read for them follows from what they show."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import websocket
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import KiB
from taba.server import keys
from taba.shard.servers.embedded import SOCKET_NAME
from tests.browser.chromium import Browser, Keys
from tests.services import BUCKETS, Services
from tests.valkey import converse

TABS, CLIENTS, BROWSERS = 10_000, 50, 8
FIRST = "host0:app/0"  # whose States the other Clients have, too
ROWS = 60  # of a page that are listened to, or ranked, at the most
HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'
MOST_QUESTIONS = 8  # before a page can be used: who one is, names, rows, the status and who lives
MOST_BYTES = 400 * KiB  # with all its files, and 10,000 names and Types
LOOK_SECONDS = 5.0  # over which it is counted, not how long anything may take
COPY = """
local states = redis.call('HGETALL', KEYS[1])
for at = 1, #states, 2 do
  local cut = string.find(states[at], '\\0', 1, true)
  local tab, rest = string.sub(states[at], 1, cut), string.sub(states[at], cut + 1 + #ARGV[1])
  for client = 2, #ARGV do
    redis.call('HSET', KEYS[1], tab .. ARGV[client] .. rest, states[at + 1])
    if rest == '' then redis.call('SADD', KEYS[2] .. string.sub(tab, 1, -2), ARGV[client]) end
  end
end
if #states > 0 then redis.call('SADD', KEYS[3], unpack(ARGV)) end
return #states
"""


@pytest.mark.real
class Many(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.services.start_server()
        events: list[Any] = [{"tab": f"many.{n // 100}.{n}", "type": "CounterGroup", "value": 1} for n in range(TABS)]
        self.services.query.post_events(FIRST, events)
        self.copy()
        self.browser = Browser(Path(tempfile.mkdtemp()) / "profile")
        self.addCleanup(shutil.rmtree, self.browser.directory.parent, ignore_errors=True)
        self.addCleanup(self.browser.stop)

    def copy(self) -> None:
        """Have the States of the first Client for all others, as they lie in the store."""
        others = [f"host{number % 5}:app/{number}" for number in range(1, CLIENTS)]
        store = str(self.services.directory / "store" / SOCKET_NAME)
        for b in range(BUCKETS):
            converse(store, [("EVAL", COPY, 3, keys.states(b), keys.clients_of(b, b""), keys.clients(b), FIRST, *others)])
        self.assertEqual(len(self.services.query.clients()), CLIENTS)
        self.assertEqual(self.services.query.aggregates(name="many.3.333")["many.3.333"]["pct"]["count"], CLIENTS)

    def test_eight_browsers_see_what_happens_and_read_what_they_show_alone(self) -> None:
        services, browser = self.services, self.browser
        shown = [f"many.0.{n}" for n in range(ROWS)]
        self.read_in(LOOK_SECONDS, shown)
        alone = self.busy
        browser.open(services.server_url)
        self.look_at_the_beginning()
        others = Contexts(browser)
        self.addCleanup(others.close)
        for _ in range(BROWSERS - 1):
            others.open(services.server_url)
        for handle in browser.driver.window_handles:
            browser.driver.switch_to.window(handle)
            browser.until_text(".tools", "10,000 Tabs")
        browser.until(lambda: services.query.status()["listening"]["listeners"] == BROWSERS)  # each has a stream of its own
        self.assertLess(len(browser.texts(".space .row")), ROWS)

        # nothing happens: rows and Aggregates are kept
        quiet = self.read_in(LOOK_SECONDS)
        idle = self.busy
        # all that is shown moves each second, and nothing else
        moving = self.read_in(LOOK_SECONDS, shown)
        print(
            f"of a core the Server takes {idle:.2f} for {BROWSERS} pages while nothing comes, {alone:.2f} for what comes alone,"
            f" {self.busy:.2f} for both; it reads {quiet:.0f} and {moving:.0f} States a second"
        )
        rows = ROWS * CLIENTS
        # a row and an Aggregate of each Tab that is shown, for all browsers together: each for itself, they would be eight times that
        self.assertLess(moving, 1.5 * rows)
        self.assertLess(quiet, moving + rows)
        for handle in browser.driver.window_handles:
            browser.driver.switch_to.window(handle)
            browser.until_text(".row .rate", "/s")

        # what each view does, with all of that around it
        browser.type("#search", "many.99.99")
        browser.until_text(".tools", "100 of 10,000")
        browser.run("document.querySelector('.list').scrollTop = 1e6")
        browser.until_text(".row .name", "many.99.9999")
        self.go("#/client/host1%3Aapp%2F1", ".tools", "10,000 Tabs")
        self.go("#/clients", ".tools", "50 Clients")
        self.go("#/tab/many.3.333", ".past h3", "Events per second")
        browser.until(lambda: len(browser.texts(".who tbody tr")) == CLIENTS)
        self.zoom()
        self.go("#/board/%3D%5B%22many.3.333%22%2C%22many.0.0%22%5D", ".card .value", "")
        browser.until(lambda: len(browser.texts(".card .value")) == 2)
        self.look_at_strangers()
        self.assertEqual(browser.said(), [])

        # and all of them say that the Server is away, and go on once it is back
        services.kill_server()
        for handle in browser.driver.window_handles:
            browser.driver.switch_to.window(handle)
            browser.until_text("#banner", "does not answer")
        services.start_server()
        for handle in browser.driver.window_handles:
            browser.driver.switch_to.window(handle)
            browser.until(lambda: not browser.texts("#banner"))
        browser.until(lambda: services.query.status()["listening"]["listeners"] == BROWSERS)

    def go(self, place: str, selector: str, text: str) -> None:
        """Another view, which shows `text` in the end."""
        self.browser.run("location.hash = arguments[0]", place)
        self.browser.until_text(selector, text)

    def look_at_the_beginning(self) -> None:
        """What a page asked for before its list could be used is little, however many Tabs there are; how long it took is printed."""
        browser = self.browser
        script = """
            const [usable] = performance.getEntriesByName('taba-usable');
            if (!usable) return null;
            const before = performance.getEntriesByType('resource').filter((one) => one.startTime < usable.startTime);
            const sum = (of) => of.reduce((total, one) => total + one.transferSize, 0);
            const asked = before.filter((one) => one.name.includes('/v1/') || one.name.endsWith('/login'));
            return [usable.startTime, before.length - asked.length, asked.length, sum(before)];
        """
        milliseconds, files, asked, size = browser.until(lambda: browser.run(script))
        print(f"usable after {milliseconds:.0f} ms: {files} files, {asked} questions, {size / 1024:.0f} KiB")
        self.assertLessEqual(asked, MOST_QUESTIONS)
        self.assertLessEqual(size, MOST_BYTES)

    def zoom(self) -> None:
        """A part of a window, and the whole of it again."""
        browser = self.browser
        browser.click(".window:nth-child(2)")
        browser.until(lambda: browser.run("return document.querySelector('.detail .u-over')?.clientWidth > 300"))
        browser.drag(".detail .u-over", 0.2, 0.99)
        browser.until_text("button", "Whole window")
        browser.press("0")
        browser.until(lambda: "Whole window" not in browser.texts("button"))

    def look_at_strangers(self) -> None:
        """A hostile name, and dead letters of which one is given up."""
        services, browser = self.services, self.browser
        services.query.post_events("b/1", [{"tab": "odd", "labels": {"x": HOSTILE}, "type": "CounterGroup", "value": 1}])
        for number in range(2):
            services.query.post_events("b/1", [{"tab": f"lost.{number}", "type": "NoSuchType", "value": HOSTILE}])
        self.go("#/letters", ".letter summary", "no Handler of Type NoSuchType")
        browser.click(".letter summary")
        for word in ("Discard", "For ever?"):
            browser.until_text("button[aria-label='Discard 1 event of lost.1']", word)
            browser.click("button[aria-label='Discard 1 event of lost.1']")
        browser.until(lambda: browser.texts(".letter td:nth-child(3)") == ["lost.0"])
        self.go("#/tab/odd", "h1", "odd")
        browser.until_text(".siblings, h1", "odd")
        browser.open(f"{services.server_url}/#/")
        browser.type("#search", "onerror")
        browser.until_text(".row .name", HOSTILE)
        browser.press(Keys.ENTER)
        browser.until_text("h1 .label", HOSTILE)
        self.assertIsNone(browser.run("return window.harmed ?? null"))

    def read_in(self, seconds: float, tabs: tuple[str, ...] | list[str] = ()) -> float:
        """How many States a second the Server reads for its answers meanwhile, while something of `tabs` comes again and again."""
        before, began, worked = self.services.query.status()["states_read"], time.monotonic(), self.worked()
        while (passed := time.monotonic() - began) < seconds:
            if tabs:
                self.services.query.post_events(FIRST, [{"tab": tab, "type": "CounterGroup", "value": 1} for tab in tabs])
            time.sleep(0.2)
        read: int = self.services.query.status()["states_read"] - before
        self.busy = (self.worked() - worked) / passed
        return read / passed

    def worked(self) -> float:
        """Seconds of a core that the Server has taken."""
        fields = Path(f"/proc/{self.services.pid('server')}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Contexts:
    """Further browsers in the process of one: contexts that share no connection, no cookie, no worker."""

    def __init__(self, browser: Browser):
        address = browser.driver.capabilities["goog:chromeOptions"]["debuggerAddress"]
        version = browser.driver.execute_cdp_cmd("Browser.getVersion", {})
        self.assert_is_chromium(version)
        path = (browser.directory / "DevToolsActivePort").read_text().split()[1]
        self._socket = websocket.create_connection(f"ws://{address}{path}", timeout=60, suppress_origin=True)
        self._number = 0

    @staticmethod
    def assert_is_chromium(version: dict[str, str]) -> None:
        assert "Chrome" in version["product"], version

    def open(self, url: str) -> None:
        """Open a page in a browser of its own."""
        context = self._ask("Target.createBrowserContext", disposeOnDetach=True)["browserContextId"]
        self._ask("Target.createTarget", url=url, browserContextId=context)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(answer["error"])
                found: dict[str, Any] = answer["result"]
                return found

    def close(self) -> None:
        """End them."""
        self._socket.close()
