// What moves: the Tabs that matter first, then all of them by prefix; found as one types.

import { get, url } from "./api.js";
import { MOST_HEARD, MOST_ROWS, catalogue, freshen, within } from "./catalogue.js";
import { h, say } from "./dom.js";
import { figuresOf } from "./figures.js";
import * as format from "./format.js";
import { WindowedList } from "./list.js";
import { listener, repeat, trying } from "./live.js";
import { hash, parse, prefixOf, search } from "./names.js";
import { pinned, togglePin } from "./pins.js";
import { Beginning, Seen, drawSeen, drawSpark, sparkline } from "./spark.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {{kind: "head", text: string, note: string} | {kind: "group", prefix: string, many: number, open: boolean} | {kind: "tab", name: string, under: boolean}} Item */

const TOP = 60; // Tabs that move most, ranked by the Server
const LIVE = 60; // rows that are listened to at most: what a screen shows
const GROUPED = 40; // names, from which on they are in groups that open
const FIRST_MINUTES = 5; // of a sparkline: what is called an hour ago
const RANK_EVERY = 5000; // ms
const SORTS = /** @type {[string, string][]} */ ([["moves", "what moves"], ["rate", "rate"], ["trend", "trend"], ["p99", "p99"], ["1h", "last hour"], ["clients", "Clients"], ["name", "name"]]);

/** What is kept while a reader looks at something else. */
const kept = { text: "", sort: "moves", open: /** @type {Set<string>} */ (new Set()), top: 0 };

/**
 * @param {HTMLElement} host
 * @returns {View}
 */
export function home(host) {
  /** @type {Map<string, any>} */
  const rows = new Map(); // what the overview said
  /** @type {Map<string, any>} */
  const now = new Map(); // what the stream said
  /** @type {string[]} */
  let top = [];
  /** @type {string[]} */
  let seen = [];
  let drawn = "";
  const beginning = new Beginning();
  const latest = new Seen();
  let heard = 0;
  let known = catalogue.at > 0;
  const listen = listener();

  const input = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search names, labels, Types",
    "aria-label": "Search Tabs by words of their names, labels or Types",
    autocomplete: "off",
    spellcheck: "false",
    value: kept.text,
    oninput: () => {
      kept.text = input.value;
      list.selected = -1;
      list.element.scrollTop = 0;
      arrange();
    },
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        list.element.focus();
        list.select(0);
        if (event.key === "Enter" && list.items[0]) open(list.items[0]);
      }
    },
  });
  const sort = h(
    "select",
    {
      id: "sort",
      "aria-label": "Rank by",
      onchange: () => {
        kept.sort = sort.value;
        void trying(rank());
      },
    },
    ...SORTS.map(([value, text]) => h("option", { value, selected: kept.sort === value }, text)),
  );
  sort.value = kept.sort;
  const total = h("span", { class: "quiet", role: "status" });
  const list = new WindowedList({ label: "Tabs", key: keyOf, make, show, open, seen: look });
  const heads = h(
    "div",
    { class: "row heads", "aria-hidden": "true" },
    ...["", "Tab", "last hour", "live", "now", "an hour ago", "p50", "p99", "Clients"].map((text, at) => h("span", { class: ["pin", "name", "sparks", "sparks seen", "number", "number ago", "number p50", "number p99", "number few"][at] }, text)),
  );
  const lasting = heads.children[2];
  host.replaceChildren(
    h("h1", { class: "unseen" }, "What moves"),
    h("div", { class: "tools" }, input, h("label", { class: "quiet rank" }, "Rank by ", sort), total),
    heads,
    list.element,
  );

  function make() {
    const pin = h("button", { class: "pin", tabindex: -1, onclick: () => pinRow(Number(row.dataset["at"])) });
    const cells = ["rate", "ago", "p50", "p99", "few"].map((of) => h("span", { class: `number ${of}` }));
    const row = h("div", { class: "row" }, h("span", { class: "star" }, pin), h("span", { class: "name" }, h("b"), h("i"), h("em")), h("span", { class: "sparks" }, sparkline()), h("span", { class: "sparks seen" }, sparkline()), ...cells);
    return row;
  }

  /** @param {number} at */
  function pinRow(at) {
    const item = list.items[at];
    if (item?.kind === "tab") togglePin(item.name);
    list.refresh();
  }

  /**
   * @param {HTMLElement} row
   * @param {Item} item
   */
  function show(row, item) {
    const [star, name, spark, came, rate, ago, p50, p99, clients] = /** @type {HTMLElement[]} */ ([...row.children]);
    const pin = /** @type {HTMLButtonElement} */ (star.firstChild);
    row.className = `row ${item.kind}`;
    const [base, labels, type] = /** @type {HTMLElement[]} */ ([...name.children]);
    if (item.kind !== "tab") {
      say(base, item.kind === "head" ? item.text : `${item.open ? "▾" : "▸"} ${item.prefix || "others"}`);
      say(labels, item.kind === "head" ? item.note : format.plural(item.many, "Tab"));
      for (const cell of [type, rate, ago, p50, p99, clients]) say(cell, "");
      drawSpark(/** @type {any} */ (spark.firstChild), null);
      drawSpark(/** @type {any} */ (came.firstChild), null);
      pin.hidden = true;
      return;
    }
    const parts = parse(item.name);
    say(base, parts.base);
    say(labels, parts.labels.map(([key, value]) => `${key}=${value}`).join("  "));
    say(type, catalogue.types[item.name] ?? "");
    row.title = item.name;
    pin.hidden = false;
    const is = pinned(item.name);
    say(pin, is ? "★" : "☆");
    pin.setAttribute("aria-label", `${is ? "Unpin" : "Pin"} ${item.name}`);
    pin.setAttribute("aria-pressed", String(is));
    const said = rows.get(item.name);
    const live = now.get(item.name);
    const unit = said?.unit ?? null;
    const figures = live ?? said;
    const counts = /** @type {(number | null)[] | null} */ (said?.sparkline ?? null);
    const isCounted = live ? live.rate !== null : said?.sparkline != null;
    if (said?.error) {
      say(rate, "");
      say(ago, "");
      say(p50, "");
      say(p99, "");
      say(labels, String(said.error));
    } else {
      say(rate, !figures ? "" : isCounted ? `${format.number(figures.rate)}/s` : (figures.text ?? format.amount(figures.value ?? said?.value, unit)));
      rate.title = figures?.text ?? "";
      const isSpread = figures && (figures.p50 ?? null) !== null && !(figures.p50 === 1 && figures.p99 === 1); // of what counts one by one there is nothing to tell
      say(p50, isSpread ? format.amount(figures.p50, unit) : "");
      say(p99, isSpread ? format.amount(figures.p99, unit) : "");
      const then = counts && beginning.minute < FIRST_MINUTES ? hourAgo(counts) : null;
      const changed = counts && figures && then !== null ? format.change(figures.rate, then) : { text: "", word: "", direction: 0 };
      say(ago, changed.text);
      ago.title = changed.word;
      ago.classList.toggle("up", changed.direction > 0);
      ago.classList.toggle("down", changed.direction < 0);
    }
    say(clients, said ? format.count(said.clients) : "");
    drawSpark(/** @type {any} */ (spark.firstChild), beginning.since(counts));
    drawSeen(/** @type {any} */ (came.firstChild), latest.by.get(item.name), heard, live?.ever !== null);
  }

  /** @param {Item} item */
  function open(item) {
    if (item.kind === "tab") location.hash = hash("tab", item.name);
    else if (item.kind === "group") {
      if (kept.open.has(item.prefix)) kept.open.delete(item.prefix);
      else kept.open.add(item.prefix);
      arrange();
    }
  }

  /** @param {Item[]} items */
  function look(items) {
    kept.top = list.element.scrollTop;
    const names = [...new Set(items.flatMap((item) => (item.kind === "tab" ? [item.name] : [])))].slice(0, LIVE);
    if (names.join("\n") === seen.join("\n")) return;
    seen = names;
    latest.keep(new Set(names));
    clearTimeout(settling);
    settling = setTimeout(() => {
      listen(within(seen, MOST_HEARD), (said) => {
        heard = said.time;
        for (const [name, aggregate] of Object.entries(said.aggregates)) {
          if (aggregate?.error) continue;
          const figures = figuresOf(aggregate);
          now.set(name, figures);
          latest.add(name, heard, figures.ever, figures.value);
        }
        list.refresh();
      });
      void trying(fetchSeen());
    }, 120);
  }
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let settling;

  /** What the rows that can be seen lack. */
  async function fetchSeen() {
    const missing = seen.filter((name) => !rows.has(name));
    if (!missing.length) return;
    await ask(missing);
  }

  /** @param {string[]} names */
  async function ask(names) {
    const wanted = new Set(names);
    // a base name means its labelled Tabs, too: their rows are left out again
    const answered = await get(url("/v1/overview", { name: within(names, MOST_ROWS), sort: "name", limit: MOST_ROWS }));
    lookBack(answered);
    for (const row of answered) if (wanted.has(row.name)) rows.set(row.name, row);
    list.refresh();
  }

  /** @param {any[]} answered */
  function lookBack(answered) {
    beginning.look([...answered, ...rows.values()]);
    say(lasting, beginning.words());
  }

  async function rank() {
    const { sort: by } = kept;
    const answered = await get(url("/v1/overview", { sort: by, limit: TOP }));
    if (by !== kept.sort) return; // another order is wanted by now
    lookBack(answered);
    top = answered.map((/** @type {any} */ row) => row.name);
    for (const row of answered) {
      rows.set(row.name, row);
      if (!seen.includes(row.name)) now.delete(row.name);
    }
    arrange();
    list.refresh();
  }

  function arrange() {
    const names = catalogue.names.length ? catalogue.names : top;
    /** @type {Item[]} */
    const items = [];
    if (kept.text.trim()) {
      const found = search(names, catalogue.types, kept.text);
      for (const name of found) items.push({ kind: "tab", name, under: false });
      say(total, `${format.count(found.length)} of ${format.plural(names.length, "Tab")}`);
    } else {
      for (const name of top) items.push({ kind: "tab", name, under: false });
      const rest = names.length > top.length;
      if (rest && names.length <= GROUPED) {
        const above = new Set(top);
        for (const name of names) if (!above.has(name)) items.push({ kind: "tab", name, under: false });
      } else if (rest) {
        items.push({ kind: "head", text: "All by prefix", note: format.plural(names.length, "Tab") });
        for (const [prefix, of] of groups(names)) {
          const isOpen = kept.open.has(prefix);
          items.push({ kind: "group", prefix, many: of.length, open: isOpen });
          if (isOpen) for (const name of of) items.push({ kind: "tab", name, under: true });
        }
      }
      say(total, known || names.length ? format.plural(names.length, "Tab") : "");
    }
    if (!items.length && known) items.push({ kind: "head", text: kept.text.trim() ? "Nothing matches." : "Nothing is recorded yet.", note: kept.text.trim() ? "All words must be found in a Tab's name, labels or Type." : "from taba import client; client.counter(\"bids_won\").inc()" });
    const mark = JSON.stringify(items.map((item) => (item.kind === "tab" ? item.name : item.kind === "group" ? [item.prefix, item.open, item.many] : [item.text, item.note])));
    if (mark === drawn) return;
    drawn = mark;
    list.set(items);
    if (known && !isMarked) {
      isMarked = true;
      performance.mark("taba-usable"); // for who measures: from here on it can be searched and opened
    }
  }

  const ends = [
    repeat(async () => {
      await rank();
      const stale = seen.filter((name) => !top.includes(name));
      if (stale.length) await ask(stale);
    }, RANK_EVERY),
    repeat(async () => {
      await freshen();
      known = true;
      arrange();
    }, 10_000),
  ];
  arrange();
  list.element.scrollTop = kept.top;
  return {
    title: "",
    keys: {
      "/": ["search", () => input.focus()],
      p: ["pin the Tab that is chosen", () => pinRow(list.selected)],
      s: ["rank by something else", () => sort.focus()],
    },
    end() {
      clearTimeout(settling);
      for (const end of ends) end();
      list.end();
    },
  };
}

/**
 * What tells an item from the others.
 * @param {Item} item
 */
function keyOf(item) {
  return `${item.kind} ${item.kind === "tab" ? `${item.under ? "under" : ""} ${item.name}` : item.kind === "group" ? item.prefix : item.text}`;
}

let isMarked = false;
/** @type {{names: string[], groups: Map<string, string[]>}} */
let grouped = { names: [], groups: new Map() };

/** @param {string[]} names */
function groups(names) {
  if (grouped.names !== names) {
    /** @type {Map<string, string[]>} */
    const found = new Map();
    for (const name of names) {
      const prefix = prefixOf(parse(name).base);
      const of = found.get(prefix);
      if (of) of.push(name);
      else found.set(prefix, [name]);
    }
    grouped = { names, groups: new Map([...found].sort(([one], [other]) => (one === "" ? 1 : other === "" ? -1 : one < other ? -1 : 1))) };
  }
  return grouped.groups;
}

/**
 * The usual rate of an hour ago: of the first five minutes that the sparkline knows anything of.
 * @param {(number | null)[]} counts
 */
function hourAgo(counts) {
  const first = counts.slice(0, FIRST_MINUTES).filter((count) => count !== null);
  return first.length ? first.reduce((sum, count) => sum + count, 0) / first.length / 60 : null;
}
