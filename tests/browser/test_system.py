"""The page and what goes on behind Tabs: a Type of somebody's own, dead letters that are retried, a Client's Tabs, buckets that move."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import KiB
from taba.shard.buckets import prefix_of
from tests.browser.chromium import Keys, share, shared, unshare
from tests.services import BUCKETS, Services
from tests.stores import borrow
from tests.valkey import EphemeralValkey

pytestmark = pytest.mark.real
# what a stranger may write anywhere: markup, text from right to left, what has no width, and no end of it
HOSTILE = '"><img src=x onerror="window.harmed=1"><script>window.harmed=1</script>\u202eesrever\u202c\u200b\ufeff' + "W" * 600
WORDS = """
from taba.handlers import Ever, Handler, History

class Words(Handler):
    '''How many words there were, and the last of them.'''
    type = "Words"
    def new_state(self): return [0, 0.0, ""]
    def fold(self, state, events, now):
        count, last, word = state
        for word in events.values:
            if word == "boom": raise ValueError(HOSTILE)
            count += 1
        return [count, now, word]
    def project(self, state, now): return {"words": state[0], "latest": state[2]}
    def aggregate(self, projections):
        return {"words": sum(one["words"] for one in projections), "latest": max(one["latest"] for one in projections)}
    def render(self, projection): return f"{projection['words']} words, such as {projection['latest']}"
    def history(self, states, now):
        counts = [float(count) for count, _, _ in states]
        last = [last for _, last, _ in states]
        return History(since=now - 60, row=list(range(len(last))), start=[one - 5 for one in last], end=last, count=counts, total=counts,
                       ever=Ever(count=counts, total=counts))

words = Words()
"""

setUpModule, tearDownModule = share, unshare


class Looking(SynchronousTestCase):
    def setUp(self) -> None:
        self.browser = shared[0]
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.browser.open("about:blank")  # what a page says of the Server of the test before is not said of this one
        self.browser.said()

    def tearDown(self) -> None:
        self.assertIsNone(self.browser.run("return window.harmed ?? null"))

    def open(self, place: str) -> None:
        self.browser.open(f"{self.services.server_url}/{place}")


class TypesOfOthers(Looking):
    def test_dead_letters_of_a_type_that_comes_later_are_retried_and_it_is_shown_as_it_says(self) -> None:
        services, browser = self.services, self.browser
        services.start_server()
        tab = f'said{{x="{HOSTILE[:250]}"}}'
        services.query.post_events("a/1", [{"tab": "said", "type": "Words", "value": word} for word in ("red", "blue")])
        services.query.post_events("a/1", [{"tab": "said", "labels": {"x": HOSTILE[:250]}, "type": "Words", "value": HOSTILE}])
        self.open("#/letters")
        browser.until_text(".letter summary", "no Handler of Type Words")
        browser.click("#retry")
        browser.until_text("[role=status]", "retry: done")
        self.assertEqual(services.query.status()["dead_letters"], 3)  # nothing has changed
        services.kill_server()
        plugins = services.directory / "theirs" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "words_plugin.py").write_text(WORDS.replace("HOSTILE", repr(HOSTILE)))
        services.environ["PYTHONPATH"] += f":{services.directory / 'theirs'}"
        services.start_server()
        browser.until(lambda: not browser.texts("#banner"))
        browser.click("#retry")
        browser.until_text("main", "None: everything that came was folded.")
        services.query.post_events("a/1", [{"tab": "said", "type": "Words", "value": "boom"}])
        browser.until_text(".letter summary", "handler error")
        browser.click(".letter summary")
        browser.until_text(".letter pre", "words_plugin.py")  # the frame that raised
        browser.until_text(".letter pre", "<script>window.harmed")
        self.open("#/tab/said")
        browser.until_text(".past h3", "Events per second")
        self.open("#/tab/" + browser.run("return encodeURIComponent(arguments[0])", services.query.names(match=r"said\{.*")[0]))
        browser.until_text("pre.rendered", '1 words, such as "><img')
        browser.until_text("h1 .label", "<script>")
        self.assertLessEqual(browser.run("return document.scrollingElement.scrollWidth - innerWidth"), 0)
        self.assertEqual([line for line in browser.said() if "Failed to load resource" not in line], [], tab)  # the Server was away


class OtherServers(Looking):
    def test_what_is_wrong_at_another_server_is_on_every_page_and_where_nobody_can_tell_it_says_so(self) -> None:
        services, browser = self.services, self.browser
        store = borrow(self, tcp=True)
        services.start_server(store=store.url)
        other = services.second_server(store.url, self.spoilt())
        said = f"{other}: Handlers, plugin theirs_plugin: ModuleNotFoundError"
        self.open("#/system")
        browser.until_text(".problemlist", said)
        self.assertEqual([text for text in browser.texts(".problemlist li") if "theirs_plugin" in text and not text.startswith(said)], [])
        browser.until_text("#line .problems", said)
        browser.until(lambda: browser.texts("tr td:nth-child(2)")[:2].count("nothing") == 1)  # this one's
        links = browser.run("return [...document.querySelectorAll('td a[rel]')].map(link => link.getAttribute('href'))")
        self.assertEqual(links, sorted(f"{url}/#/system" for url in (services.server_url, other)))
        told = services.taba("status").stdout
        self.assertIn(f"! {other}: Handlers, plugin theirs_plugin", told.replace("\n", " "))
        store.kill()
        browser.until_text(".warn", "Which other Servers there are")
        store.start()
        browser.until(lambda: not browser.texts(".warn"))
        browser.until_text(".problemlist", said)
        services._kill("server 2")
        browser.until(lambda: other not in browser.text("main"))  # who is gone has no problems
        self.assertEqual([line for line in browser.said() if "Failed to load resource" not in line], [])

    def spoilt(self) -> str:
        """What has a plugin that cannot be imported."""
        plugins = self.services.directory / "theirs" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "theirs_plugin.py").write_text("from taba.handlers import Handler\nimport nowhere_to_be_found\n")
        return str(plugins.parent.parent)


class OneClient(Looking):
    def test_a_client_has_all_its_tabs_and_those_that_can_be_seen_are_asked_for(self) -> None:
        services, browser = self.services, self.browser
        services.start_server()
        for client in ("web:a/1", "web:a/2"):
            events: list[Any] = [{"tab": f"of.{client[-1]}.{n:03}", "type": "CounterGroup", "value": 1} for n in range(300)]
            services.query.post_events(client, [*events, {"tab": "both", "type": "CounterGroup", "value": 1}])
        self.open("#/client/web%3Aa%2F2")
        browser.until_text(".tools", "301 Tabs")
        self.assertLess(len(browser.texts(".space .row")), 60)
        browser.run("document.querySelector('.list').scrollTop = 1e6")
        browser.until_text(".row .name", "of.2.299")
        browser.until_text(".row .number", "1")
        browser.type("#search", "of.1")
        browser.until_text(".tools", "0 of 301")
        browser.type("#search", "of.2.17")
        browser.until_text(".tools", "10 of 301")
        browser.press(Keys.ARROW_DOWN)
        browser.run("document.querySelector('.list').focus()")
        browser.press(Keys.ARROW_DOWN, Keys.ENTER)
        browser.until_text("h1", "of.2.170")
        self.assertEqual(browser.said(), [])


class Moving(Looking):
    def test_buckets_are_seen_while_they_move_and_after(self) -> None:
        services, browser = self.services, self.browser
        first, second = borrow(self, tcp=True), borrow(self, tcp=True)
        services.start_server("--buckets", str(BUCKETS), store=first.url)
        services.query.post_events("a/1", [{"tab": f"t{n}", "type": "CounterGroup", "value": 1} for n in range(50)])
        for bucket in range(BUCKETS):  # so much that it takes minutes at this rate
            self.tell(first, "SET", prefix_of(bucket) + b"ballast", b"x" * 256 * KiB)
        self.open("#/system")
        browser.until_text("figcaption", "s1: its buckets")
        command = [sys.executable, "-m", "taba.cli.main", "reshard", "--add", second.url]
        slow = subprocess.Popen(
            [*command, "--rate", "0.02"], env=services.environ, cwd=services.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            browser.until_text("figcaption", "way to s2")
            browser.until(lambda: browser.run("return document.querySelectorAll('.map .leaving').length"))
        finally:
            slow.send_signal(signal.SIGKILL)
            slow.wait()
        done = services.taba("reshard", "--add", second.url)
        self.assertEqual(done.returncode, 0, done.stderr)
        browser.until_text("figcaption", f"{BUCKETS // 2} came within the last minute")
        browser.until(lambda: not browser.run("return document.querySelectorAll('.map .leaving').length"))
        self.assertEqual(browser.said(), [])

    def tell(self, store: EphemeralValkey, *words: Any) -> None:
        self.assertEqual(store.call(*words), b"OK")
