"""The page in a real browser: what people do with it, beside a real Server, Agent and processes that record."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib.resources import files
from urllib.parse import quote

import pytest

from tests.browser.chromium import DESKTOP, PHONE, Keys, share, unshare
from tests.browser.page import HOSTILE, UNUSUAL, WithBrowser

pytestmark = pytest.mark.real
VIEWS = (
    "#/",
    "#/board",
    "#/clients",
    "#/processes",
    "#/system",
    "#/letters",
    "#/tab/http_seconds",
    "#/tab/queue_depth",
    "#/client/web%3Aa%2F1",
)


setUpModule, tearDownModule = share, unshare


class Page(WithBrowser):
    def test_what_moves_is_there_and_goes_on_and_what_is_typed_finds_a_tab_and_opens_it(self) -> None:
        self.open()
        self.browser.until_text(".row .name", "hits")
        self.browser.until_text("#line", "alive")
        self.browser.type("#search", "percentile cart")
        self.assertEqual(self.browser.until_text(".row .name", "/cart").count("http_seconds"), 1)
        self.browser.type("#search", "many.7.77")
        self.browser.until_text(".tools", "10 of 1,0")  # many.7.770 and those after it
        self.browser.press(Keys.ENTER)
        self.browser.until_text("h1", "many.7.770")
        self.open("#/tab/hits")
        first = self.browser.until_text(".large dd", "")
        self.browser.until(lambda: self.browser.text(".large dd") not in ("", first))  # live, while a process records
        self.assertEqual(self.browser.said(), [])

    def test_rows_outside_the_window_are_not_there(self) -> None:
        self.open()
        self.browser.type("#search", "many")
        self.browser.until_text(".tools", "1,000 of")
        self.assertLess(len(self.browser.texts(".space .row")), 60)
        self.browser.run("document.querySelector('.list').scrollTop = 1e6")
        self.browser.until_text(".row .name", "many.9.999")
        self.assertLess(len(self.browser.texts(".space .row")), 60)

    def test_a_tabs_past_is_drawn_zoomed_and_stands_beside_in_a_table(self) -> None:
        self.open("#/tab/http_seconds")
        self.browser.until_text(".past h3", "Percentiles")
        self.browser.click("details.beside summary")
        self.browser.until(lambda: len(self.browser.texts(".beside tbody tr")) >= 2)
        self.browser.click(".window:nth-child(1)")
        self.browser.until(lambda: self.browser.run("return document.querySelector('.detail .u-over')?.clientWidth > 300"))
        self.browser.drag(".detail .u-over", 0.8, 0.99)
        self.browser.until_text("button", "Whole window")
        self.browser.click(".past .tools button:not([aria-pressed])")
        self.browser.until(lambda: "Whole window" not in self.browser.texts("button"))
        self.browser.press("a")
        self.browser.until_text(".past h3", "Heat map")
        self.browser.run("const s = document.querySelector('.past select'); s.value = 'route'; s.dispatchEvent(new Event('change'))")
        self.browser.until_text(".legend", "/cart")
        self.browser.until_text(".copied code", "histogram_quantile")
        self.assertEqual(self.browser.said(), [])

    def test_what_is_kept_in_slots_of_several_widths_is_drawn_once_as_wide_as_the_widest(self) -> None:
        self.open()
        found = self.browser.run(
            """
            return import('/page/charts.js').then(({cellsAs, cellsOf, together}) => {
              const slot = (start, end, count) => ({start, end, count, total: 2 * count});
              const wide = [slot(0, 600, 7), slot(600, 1200, 6)], fine = [slot(300, 450, 1), slot(450, 600, 2), slot(1200, 1350, 3)];
              const cells = cellsOf(together([wide, fine]), 150, {from: 0, to: 2000});
              const told = ({start, end, count, total}) => [start, end, count, total];
              return [cells, cellsAs(wide, cells), cellsAs(fine, cells)].map((of) => of.map(told));
            });
            """
        )
        self.assertEqual(found[0], [[0, 600, 10, 20], [600, 1200, 6, 12], [1200, 1350, 3, 6]])
        self.assertEqual([cell[2] for cell in found[1]], [7, 6, 0])
        self.assertEqual([cell[2] for cell in found[2]], [3, 0, 3])

    def test_what_keeps_no_past_is_drawn_since_one_looks_with_a_table_beside_it(self) -> None:
        self.open("#/tab/queue_depth")
        self.browser.until_text(".trace figcaption", "Since you look")
        self.browser.click(".trace summary")
        self.browser.until(lambda: len(self.browser.texts(".trace tbody tr")) >= 3)
        self.assertEqual(self.browser.said(), [])

    def test_times_and_numbers_are_the_readers_own(self) -> None:
        self.addCleanup(self.browser.live_in, "", "en-US")
        script = "return import('/page/format.js').then(({moment, time, count}) => [moment(1e9), time(1e9), count(1234567)].join(' '))"
        found = []
        for zone, locale in (("Asia/Tokyo", "de-DE"), ("America/New_York", "en-US")):
            self.browser.live_in(zone, locale)
            self.open()
            found.append(self.browser.run(script))
        for part, shown in zip(("10:46:40", "1.234.567", "9:46:40", "1,234,567"), (found[0], found[0], found[1], found[1]), strict=True):
            self.assertIn(part, shown)

    def test_an_axis_that_begins_just_below_a_power_of_ten_comes_to_its_end(self) -> None:
        self.open("#/tab/edge")
        self.browser.until_text(".past h3", "Percentiles")
        self.browser.until(lambda: self.browser.run("return document.querySelectorAll('.detail .u-over')[1]?.clientWidth > 300"))
        marks = self.browser.run("return import('/page/charts.js').then((charts) => charts.splitsOf(0.0154 / 1.6, 0.04, '1'))")
        self.assertEqual((marks, self.browser.said()), ([0.01, 0.02], []))

    def test_marks_of_an_axis_are_round_in_its_unit(self) -> None:
        self.open()
        script = """
            return Promise.all([import('/page/charts.js'), import('/page/format.js')]).then(([{splitsOf, stepsOf}, {mark}]) => {
              const even = (most, step, unit) => Array.from({length: Math.floor(most / step) + 1}, (_, at) => mark(at * step, unit));
              return arguments[0].map(([low, high, unit]) => {
                const step = low ? null : (stepsOf(unit) ?? [high]).find((at) => 5 * at >= high);
                return low ? splitsOf(low, high, unit).map((at) => mark(at, unit)) : even(high, step, unit);
              });
            });
        """
        wanted = {
            (1800, 40_000, "s"): "30 min|1 h|2 h|6 h",
            (0.002, 90_000, "seconds"): "10 ms|100 ms|1 s|10 s|1 min|10 min|1 h|1 d",
            (70_000, 170_000, "ms"): "90 s|2 min|150 s",
            (3_000, 2_000_000, "By"): "4 KiB|16 KiB|64 KiB|256 KiB|1 MiB",
            (0.3, 70, "1"): "0.500|1|2|5|10|20|50",
            (0, 100, "s"): "0 s|20 s|40 s|1 min|80 s|100 s",
            (0, 21_000, "s"): "0 s|2 h|4 h",
            (0, 400_000, "us"): "0 s|100 ms|200 ms|300 ms|400 ms",
            (0, 5e6, "bytes"): "0 B|1 MiB|2 MiB|3 MiB|4 MiB",
        }
        found = self.browser.run(script, list(wanted))
        self.assertEqual(["|".join(marks) for marks in found], list(wanted.values()))

    def test_whatever_a_type_of_somebodys_own_answers_breaks_no_view(self) -> None:
        self.open()
        odd = [
            "1",
            "[1]",
            '"x"',
            "null",
            '{"1m": 5}',
            '{"1m": "p50"}',
            '{"top": [1]}',
            '{"top": [null]}',
            '{"values": [1]}',
            '{"values": {}}',
        ]
        script = "return import('/page/figures.js').then((of) => arguments[0].map((one) => of.figuresOf(JSON.parse(one)).text))"
        self.assertEqual(self.browser.run(script, odd), [None] * len(odd))

    def test_a_problem_is_that_of_the_client_whom_it_names(self) -> None:
        self.open()
        said = ["Client web:1 drops", "(web:1)", "web:1: drops", "see web:1.", "web:12 drops", "my/web:1 drops", "web:1/0 drops", "web:1.5"]
        script = "return import('/page/names.js').then((names) => arguments[0].map((one) => names.mentions(one, 'web:1')))"
        self.assertEqual(self.browser.run(script, said), [True] * 4 + [False] * 4)

    def test_a_page_hears_on_after_a_sleep_in_which_it_was_taken_for_gone(self) -> None:
        self.open()
        opened = self.browser.run(
            """
            const now = Date.now, ticks = [], opened = [], settled = () => new Promise((done) => setTimeout(done, 300));
            let slept = 0;
            Date.now = () => now() + slept;
            window.setInterval = (doing) => ticks.push(doing);
            window.EventSource = class { constructor(url) { opened.push(url); this.readyState = 1; } close() { opened.push(null); } };
            const port = {postMessage() {}};
            return import('/page/worker.js').then(async () => {
              window.onconnect({ports: [port]});
              port.onmessage({data: {names: ['hits']}});
              await settled();
              slept = 60_000;
              ticks[0]();
              await settled();
              port.onmessage({data: {}});
              await settled();
              return opened;
            });
            """
        )
        self.assertEqual(opened, ["/v1/stream?name=hits", None, "/v1/stream?name=hits"])

    def test_of_streams_that_took_each_others_place_before_they_had_begun_none_is_left(self) -> None:
        self.open()
        found = self.browser.run(
            """
            const settled = () => new Promise((done) => setTimeout(done, 300)), made = [];
            window.EventSource = class {
              constructor(url) { Object.assign(this, {url, readyState: 0}); made.push(this); }
              close() { this.readyState = 2; }
            };
            const left = () => made.filter((one) => one.readyState < 2).map((one) => one.url.slice(-1));
            return import('/page/stream.js').then(async ({Stream}) => {
              const stream = new Stream(), seen = [], who = {};
              const wish = async (names, begins) => {
                stream.wish(who, names, () => {});
                await settled();
                if (begins) {
                  made.at(-1).readyState = 1;
                  made.at(-1).onopen();
                }
                seen.push(left());
              };
              await wish(['a'], true);
              await wish(['b'], false);
              await wish(['c'], false);
              await wish(['d'], true);
              await wish(['e'], false);
              await wish(['f'], false);
              await wish([], false);
              return seen;
            });
            """
        )
        self.assertEqual(found, [["a"], ["a", "b"], ["a", "c"], ["d"], ["d", "e"], ["d", "f"], []])

    def test_while_nobody_can_tell_who_lives_nobody_is_said_to_be_gone(self) -> None:
        def asked_again(kind: str) -> bool:
            return bool(self.browser.run("return asked.filter((one) => one.includes(arguments[0])).length > 1", kind))

        self.open("#/processes")
        self.browser.until_text("main .lamp", "alive")
        self.browser.run(
            """
            const fetched = window.fetch;
            window.asked = [];
            window.fetch = async (path, ...more) => {
              if (!String(path).includes("name=taba.alive")) return fetched(path, ...more);
              window.asked.push(path);
              return new Response(window.said, {headers: {"content-type": "application/json"}});
            };
            window.said = "{}";
            """
        )
        for said in ("{}", '{"taba.alive": {"error": "its shard is away"}}'):
            self.browser.run("window.said = arguments[0]; window.asked = []", said)
            for kind in ("projections", "aggregates"):  # the second question is asked once the first was answered
                self.browser.until(partial(asked_again, kind))
            self.assertEqual(self.browser.texts("tr[data-key='web:1'] .lamp"), ["alive"])
        self.assertNotIn("alive", self.browser.text("#line"))

    def test_what_agents_say_of_processes_is_shown_as_it_is_and_what_is_away_stays(self) -> None:
        self.open()
        found = self.browser.run(
            """
            return import('/page/life.js').then(({note, lives}) => {
              const alive = {'x:y/1': {value: 1, time: 9}, 'x:y/2': {value: 0, time: 8}, constructor: {value: null, time: null}};
              const facts = (since, processes, dropped) => ({value: {since, processes, dropped}});
              const process = {'x:y/1': facts(5, 2, 3), 'x:y/2': facts(6, 0, 0)};
              const starts = {'x:y/1': {distinct: 7}, 'x:y/2': {distinct: 2}};
              note({'taba.alive': alive, 'taba.process': process, 'taba.starts': starts});
              const seen = ['x:y/1', 'x:y/2', 'constructor'].map((client) => {
                const {alive, since, processes, restarts, dropped} = lives.get(client);
                return [alive, since, processes, restarts, dropped];
              });
              note({'taba.alive': {'x:y/1': {value: 1, time: 10}}, 'taba.process': {error: 'away'}, 'taba.starts': {error: 'away'}});
              return [...seen, [lives.size, lives.get('x:y/1').restarts, lives.get('x:y/1').dropped]];
            });
            """
        )
        self.assertEqual(found, [[True, 5, 2, 5, 3], [False, 6, 0, 1, 0], [None, None, None, None, None], [1, 5, 3]])

    def test_a_process_that_was_killed_and_lives_again_is_told_of_to_who_comes_later(self) -> None:
        code = "from taba import client; client.start('shop:worker/1'); client.counter('worked').inc(); input()"
        command = [sys.executable, "-c", code]

        def work() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=self.services.environ, cwd=self.services.directory, stdin=subprocess.PIPE)
            assert process.stdin is not None
            self.addCleanup(process.stdin.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            return process

        def row() -> list[str]:
            script = "return [...(document.querySelector('tr[data-key=\"shop:worker/1\"]')?.children ?? [])].map((one) => one.textContent)"
            found: list[str] = self.browser.run(script)
            return found

        first = work()
        self.open("#/processes")
        self.browser.until(lambda: row()[1:2] == ["alive"] and row()[3] == "0")
        first.kill()
        self.browser.until(lambda: row()[1:2] == ["gone"] and row()[2].startswith("gone "))
        work()
        self.browser.until(lambda: row()[1:2] == ["alive"] and row()[3] == "1")
        self.open("#/processes")  # it was not there meanwhile
        self.browser.until(lambda: row()[1:2] == ["alive"] and row()[3] == "1")
        self.browser.until_text("section.host h2", "1 restart")
        self.assertEqual(self.browser.said(), [])

    def test_what_is_drawn_anew_gives_the_focus_to_nobody_elses_button(self) -> None:
        self.open()
        found = self.browser.run(
            """
            return Promise.all([import('/page/dom.js'), import('/page/list.js')]).then(([{fill, h}, {WindowedList}]) => {
              const button = (name) => h('button', null, name);
              const host = h('div'), seen = [], told = () => seen.push(document.activeElement.textContent);
              const row = (name) => h('p', {'data-key': name}, button(name));
              const rows = (...names) => fill(host, h('div', {tabindex: 0}, ...names.map(row)));
              document.body.append(host);
              rows('a', 'b', 'c');
              host.querySelectorAll('button')[1].focus();
              for (const names of ['abc', 'xabc', 'cb', 'ac']) {
                rows(...names);
                told();
              }
              const list = new WindowedList({label: 'l', rowHeight: 20, key: (item) => item, make: () => h('div', null, button('')),
                show: (row, item) => (row.firstChild.textContent = item), open: (item) => seen.push(`opened ${item}`), seen() {}});
              fill(host, list.element);
              list.set(['a', 'b', 'c']);
              list.select(1);
              list.rows[1].firstChild.focus();
              list.set(['x', 'a', 'b']);
              seen.push(document.activeElement === list.element, list.items[list.selected]);
              list.key(new KeyboardEvent('keydown', {key: 'Enter'}));
              list.set(['x']);
              seen.push(list.selected);
              host.remove();
              return seen;
            });
            """
        )
        self.assertEqual(found, ["b", "b", "b", "ac", True, "b", "opened b", -1])

    def test_who_marks_the_client_that_stands_out(self) -> None:
        self.open("#/tab/slow")
        self.assertIn("web:b/2", self.browser.until_text(".outlier", "Stands out"))
        self.browser.until(lambda: self.browser.texts("tr.marked th") == ["web:b/2"])
        self.browser.click("[data-sort=client]")
        self.browser.until(lambda: self.browser.texts(".who tbody th") == [f"web:b/{number}" for number in range(4)])

    def test_a_board_is_put_together_by_keys_kept_and_found_again(self) -> None:
        for tab in ("hits", "queue_depth", "words"):
            self.open(f"#/tab/{tab}")
            self.browser.until_text("h1", tab)
            self.browser.press("p")
            self.browser.until_text("button", "Pinned")
        self.browser.press("b")
        self.browser.until_text(".card", "words")
        self.browser.until_text(".card .value", "red")
        self.browser.run("document.querySelector('.card[data-tab=words]').focus()")
        self.browser.press("<")
        self.browser.type("main input[type=text]", "wall-1")
        self.browser.click("#keep")
        self.browser.until_text("h1", "wall-1")
        self.open("#/board/wall-1")
        self.browser.until(
            lambda: (
                self.browser.run("return [...document.querySelectorAll('.card')].map(c => c.dataset.tab)")
                == ["hits", "words", "queue_depth"]
            )
        )
        self.open("#/board/" + quote('=["words"]', safe=""))
        self.browser.until_text(".card .value", "red")
        self.assertEqual(self.browser.said(), [])

    def test_dead_letters_are_shown_with_their_cure_and_discarded_by_whom_means_it(self) -> None:
        self.open("#/letters")
        self.browser.until_text(".letter summary", "no Handler of Type NoSuchType")
        self.browser.click(".letter summary")
        self.browser.until_text(".letter td", "<img")
        self.browser.click("#discard")
        self.browser.until_text("#discard", "for ever?")
        self.assertEqual(self.services.query.status()["dead_letters"], 1)
        self.browser.click("#discard")
        self.browser.until_text("main", "None: everything that came was folded.")
        self.browser.until(lambda: self.services.query.status()["dead_letters"] == 0)
        self.services.query.post_events("batch/1", [{"tab": "lost", "type": "NoSuchType", "value": HOSTILE}])

    def test_one_dead_letter_is_discarded_and_the_others_stay(self) -> None:
        lost = [f"lost.{number}" for number in range(3)]
        for tab in lost:
            self.services.query.post_events("batch/1", [{"tab": tab, "type": "NoSuchType", "value": 1}])
        self.open("#/letters")
        self.browser.click(".letter summary")
        self.browser.until(lambda: set(lost) <= set(self.browser.texts(".letter td:nth-child(3)")))
        once = "button[aria-label='{} 1 event of lost.1']".format
        self.browser.click(once("Retry"))
        self.browser.until_text("[role=status]", "still cannot be folded")
        for word in ("Discard", "For ever?"):
            self.browser.until_text(once("Discard"), word)
            self.browser.click(once("Discard"))
        self.browser.until_text("[role=status]", "1 event given up.")
        self.browser.until(lambda: "lost.1" not in self.browser.texts(".letter td:nth-child(3)"))
        self.assertLessEqual({"lost", "lost.0", "lost.2"}, {letter["tab"] for letter in self.services.query.dead_letters()})
        self.assertEqual(self.browser.said(), [])
        for letter in self.services.query.dead_letters():
            if letter["tab"] != "lost":
                self.browser.run(
                    "return fetch(`/v1/dead-letters?id=${arguments[0]}`, {method: 'DELETE'}).then((one) => one.status)", letter["id"]
                )

    def test_a_letter_counts_the_events_that_it_stands_for(self) -> None:
        self.open("#/letters")
        letter = {
            "id": "1-00",
            "reason": "unknown_edge",
            "detail": "version 9",
            "refused": 1.0,
            "tab": "hot",
            "client": "web:1",
            "type": "CounterGroup",
        }
        letters = [
            {**letter, "events": 40, "time": 1.0, "content": "40 events until 2.000, folded by an Agent"},
            {**letter, "id": "1-01", "time": 1.0, "value": 1},
        ]
        script = """
            const fetched = window.fetch, answer = JSON.stringify(arguments[0]);
            const isThese = (place) => String(place).includes('/v1/dead-letters');
            window.fetch = (place, ...more) => (isThese(place) ? Promise.resolve(new Response(answer)) : fetched(place, ...more));
        """
        self.browser.run(script, letters)
        self.browser.until_text(".letter summary", "41 events, the last")
        self.browser.click(".letter summary")
        self.browser.until_text(".letter button", "Retry these 40")
        discard = "button[aria-label='Discard 40 events of hot']"
        self.browser.click(discard)
        self.browser.until_text(discard, "For ever?")
        self.browser.click("button[aria-label='Discard 1 event of hot']")  # one is asked about at a time
        self.browser.until_text(discard, "Discard")
        self.assertEqual(self.browser.said(), [])

    def test_a_hostile_label_is_text_wherever_it_stands(self) -> None:
        self.open()
        self.browser.type("#search", "onerror")
        self.browser.until_text(".row .name", "<script>window.harmed")
        self.browser.press(Keys.ENTER)
        self.browser.until_text("h1 .label", "<script>window.harmed")
        self.browser.until_text("section.who", "web:1")
        self.browser.press("p", "b")
        self.browser.until_text(".card .label", "<script>")
        self.assertEqual(self.browser.said(), [])

    def test_whoever_is_called_as_the_parts_of_objects_are_is_nobody_else(self) -> None:
        self.open("#/tab/both")
        self.browser.until(lambda: sorted(self.browser.texts(".who tbody th")) == sorted(UNUSUAL))
        for name in UNUSUAL:
            self.go(f"#/tab/{name}")
            self.browser.until_text("h1", name)
            self.assertEqual(self.browser.until_text(".who tbody th", ""), name)
            self.browser.until_text(".past h3", "Events per second")
        self.go("#/board/constructor")
        self.browser.until_text("main", "There is no board constructor")
        self.go("#/constructor")
        self.browser.until_text(".row .name", "hits")
        self.assertEqual(self.browser.run("return Object.keys(Object.prototype).concat(Object.keys(Object))"), [])
        self.assertEqual(self.browser.said(), [])

    def test_an_answer_that_a_view_waited_for_takes_nothing_from_the_view_after_it(self) -> None:
        self.open()
        self.browser.until_text(".row .name", "hits")
        self.browser.run(
            """
            const fetched = window.fetch;
            window.held = [];
            window.fetch = async (path, ...more) => {
              const response = await fetched(path, ...more);
              if (String(path).includes("sort=p99")) await new Promise((release) => window.held.push(release));
              return response;
            };
            const sort = document.querySelector("#sort");
            sort.value = "p99";
            sort.dispatchEvent(new Event("change"));
            """
        )
        self.browser.until(lambda: self.browser.run("return window.held.length"))
        self.go("#/board/" + quote('=["queue_depth"]', safe=""))
        self.browser.until(lambda: self.browser.text(".card .value"))
        self.browser.run("for (const release of window.held) release()")
        for _ in range(3):  # it is heard on and on
            self.browser.until_other(".card .value")

    def test_who_lives_is_asked_one_by_one_where_that_is_shown(self) -> None:
        def asked(path: str) -> int:
            script = "return performance.getEntriesByType('resource').filter(one => one.name.includes(arguments[0])).length"
            return int(self.browser.run(script, path))

        each, together = "projections?name=taba.alive", "aggregates?name=taba.alive"
        self.open()
        self.browser.until(lambda: asked(together) >= 2)
        self.assertLess(asked(each), asked(together))
        before = asked(each)
        self.browser.press("m")
        self.browser.until_text("main td", "web:1")
        self.browser.until(lambda: asked(each) > before)

    def test_pages_of_one_browser_listen_once_and_hidden_ones_not_at_all(self) -> None:
        def listeners() -> int:
            return int(self.services.query.status()["listening"]["listeners"])

        self.open("#/tab/hits")
        self.browser.until(lambda: listeners() == 1)
        first = self.browser.driver.current_window_handle
        for place in ("#/tab/queue_depth", "#/tab/words"):
            self.browser.driver.switch_to.new_window("window")
            self.browser.driver.get(f"{self.services.server_url}/{place}")
            self.browser.until_text(".large dd", "")
        self.browser.until(lambda: listeners() == 1)
        for handle in self.browser.driver.window_handles:
            if handle != first:
                self.browser.driver.switch_to.window(handle)
                self.browser.driver.close()
        self.browser.driver.switch_to.window(first)
        self.browser.run("Object.defineProperty(document, 'hidden', {value: true}); document.dispatchEvent(new Event('visibilitychange'))")
        self.browser.until(lambda: listeners() == 0)

    def test_keys_alone_lead_everywhere_and_are_shown(self) -> None:
        self.open()
        self.browser.until_text(".row .name", "hits")
        for key, head in (("c", "Clients"), ("m", "My processes"), ("y", "System"), ("d", "Dead letters"), ("b", "My board"), ("h", "")):
            self.browser.press(key)
            self.browser.until_text("h1", head)
        self.browser.press("/")
        self.browser.until(lambda: self.browser.run("return document.activeElement.id") == "search")
        self.browser.press("hits", Keys.ARROW_DOWN, Keys.ENTER)
        self.browser.until_text("h1", "hits")
        self.browser.press("?")
        self.browser.until_text("dialog kbd", "Esc")
        self.browser.press(Keys.ESCAPE)
        self.browser.until(lambda: not self.browser.texts("dialog kbd"))
        self.browser.press(Keys.ESCAPE)
        self.browser.until(lambda: self.browser.run("return location.hash") == "#/")
        full = "return document.fullscreenElement !== null"
        self.browser.press("f")  # for a wall
        self.browser.until(lambda: self.browser.run(full))
        self.browser.press("f")
        self.browser.until(lambda: not self.browser.run(full))

    def test_tab_and_enter_alone_reach_what_a_mouse_does_and_show_where_they_are(self) -> None:
        self.open()
        self.browser.until_text(".row .name", "hits")
        for place, head in (("clients", "Clients"), ("processes", "My processes"), ("system", "System"), ("letters", "Dead letters")):
            self.reach(f"nav a[href='#/{place}']")
            self.browser.press(Keys.ENTER)
            self.browser.until_text("h1", head)
        self.reach(".letter summary")
        self.browser.press(Keys.ENTER)
        self.browser.until_text(".letter td", "<img")
        self.reach("#discard")
        self.reach("nav a[href='#/']", Keys.SHIFT)
        self.browser.press(Keys.ENTER)
        self.reach("#search")
        self.browser.press("percentile cart", Keys.ENTER)
        self.browser.until_text("h1", "http_seconds")
        self.reach(".tabhead button")
        self.browser.press(Keys.ENTER)
        self.browser.until_text(".tabhead button", "Pinned")
        self.reach(".window:nth-child(3)")
        self.browser.press(Keys.ENTER)
        self.browser.until(lambda: self.browser.run("return document.querySelectorAll('.window')[2].ariaPressed") == "true")
        self.reach("details.beside summary")
        self.browser.press(Keys.ENTER)
        self.browser.until_text(".beside th", "per second")
        self.reach(".body .scroll")
        self.browser.until_other(".large dd")  # it is drawn anew meanwhile, and the focus stays
        self.assertTrue(self.browser.run("return document.activeElement.matches('.body .scroll')"))
        self.reach("[data-sort='1m.count']")
        self.browser.press(Keys.ENTER)
        self.reach(".copied button")
        self.browser.press(Keys.ENTER)
        self.browser.until_text(".copied button", "op")
        self.reach("nav a[href='#/board']", Keys.SHIFT)
        self.browser.press(Keys.ENTER)
        self.browser.until_text(".card", "http_seconds")
        tab = self.browser.run("return document.querySelector('.card').dataset.tab")
        self.reach(".card .corner button:nth-child(3)")
        self.browser.press(Keys.ENTER)
        self.browser.until(lambda: self.browser.run("return document.querySelector('.card')?.dataset.tab") != tab)
        self.assertEqual(self.browser.said(), [])

    def reach(self, selector: str, *held: str) -> None:
        """Press Tab, with `held` keys, until what matches has the focus; every place on the way can be seen to have it."""
        steps = []
        for _ in range(150):
            self.browser.press(*held, Keys.TAB, *([Keys.NULL] if held else []))
            script = """
                const e = document.activeElement, s = getComputedStyle(e);
                const isSeen = e === document.body || s.outlineStyle !== 'none' || s.boxShadow !== 'none';
                return [e.matches(arguments[0]), isSeen, e.outerHTML.slice(0, 120)];
            """
            is_there, is_seen, what = self.browser.run(script, selector)
            self.assertTrue(is_seen, what)
            if is_there:
                return
            steps.append(what)
        raise AssertionError(f"{selector} is not reached by Tab: {steps}")

    def test_nothing_of_a_phone_is_too_wide_and_dark_is_dark(self) -> None:
        self.browser.resize(PHONE)
        self.browser.prefer("dark")
        self.open()
        self.browser.until_text("#line", "alive")
        for view in VIEWS:
            self.go(view)
            self.assertLessEqual(self.browser.run("return document.scrollingElement.scrollWidth"), PHONE[0], view)
        channels = self.browser.run("return getComputedStyle(document.body.parentElement).backgroundColor.match(/[0-9]+/g).map(Number)")
        self.assertLess(max(channels[:3]), 60)

    def test_a_screen_reader_finds_nothing_amiss_in_any_view_light_or_dark_on_a_desk_or_a_phone(self) -> None:
        axe = files("axe_core_python").joinpath("axe.min.js").read_text()
        self.open()
        self.browser.until_text("#line", "alive")
        self.browser.run(axe)
        script = "axe.run(arguments[0]).then(r => arguments[1](r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)])))"
        wanted = {"resultTypes": ["violations"], "iframes": False}
        for view in VIEWS:
            self.go(view)
            if "tab/" in view:
                self.browser.until_text("section.who", "Client")
            for size in (DESKTOP, PHONE):
                self.browser.resize(size)
                for scheme in ("light", "dark"):
                    self.browser.prefer(scheme)
                    self.assertEqual(self.browser.driver.execute_async_script(script, wanted), [], f"{view} {scheme} {size}")
