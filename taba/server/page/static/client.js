// A Client: whether it lives, what is wrong with it, and all its Tabs, those that move most first.

import { get, url } from "./api.js";
import { MOST_ROWS, catalogue, freshen, within } from "./catalogue.js";
import { ageOf, lamp } from "./clients.js";
import { fill, h, say } from "./dom.js";
import * as format from "./format.js";
import { lives, watchLives } from "./life.js";
import { status } from "./line.js";
import { WindowedList } from "./list.js";
import { pause, repeat, trying } from "./live.js";
import { hash, mentions, parse, search } from "./names.js";
import { Beginning, drawSpark, sparkline } from "./spark.js";

const TOP = 60; // Tabs that move most, ranked by the Server
const SHOWN = 100; // rows that are asked for at most: what a screen shows
const EVERY = 3000; // ms, or a pause that grows with what the answer took
const RANK_EVERY = 10_000;
const HEADS = ["Tab", "last hour", "now", "1 min", "1 h", "p50", "p99"];
const CLASSES = ["name", "sparks", "number rate", "number few", "number few", "number p50", "number p99"];

/**
 * @param {HTMLElement} host
 * @param {string} name
 * @returns {import("./view.js").View}
 */
export function client(host, name) {
  const state = h("p", { class: "tools" });
  const wrong = h("ul", { class: "problemlist" });
  const input = h("input", { type: "search", id: "search", placeholder: "Search its Tabs", "aria-label": `Search the Tabs of ${name}`, autocomplete: "off", spellcheck: "false", oninput: () => arrange() });
  const total = h("span", { class: "quiet", role: "status" });
  const heads = h("div", { class: "row ofclient heads", "aria-hidden": "true" }, ...HEADS.map((text, at) => h("span", { class: CLASSES[at] }, text)));
  const list = new WindowedList({ label: `Tabs of ${name}`, key: (/** @type {string} */ tab) => tab, make, show, open: (/** @type {string} */ tab) => (location.hash = hash("tab", tab)), seen: look });
  fill(host, h("h1", null, name), state, wrong, h("div", { class: "tools" }, input, total), heads, list.element);
  /** @type {string[] | null} */
  let names = null;
  /** @type {string[]} */
  let top = [];
  /** @type {string[]} */
  let seen = [];
  /** @type {Map<string, any>} */
  const rows = new Map();
  const beginning = new Beginning();
  let took = 0;
  let rankTook = 0;
  let drawn = "\0";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let settling;

  function make() {
    return h("div", { class: "row ofclient" }, h("span", { class: "name" }, h("b"), h("i"), h("em")), h("span", { class: "sparks" }, sparkline()), ...CLASSES.slice(2).map((of) => h("span", { class: of })));
  }

  /**
   * @param {HTMLElement} row
   * @param {string} tab
   */
  function show(row, tab) {
    const [called, spark, rate, minute, hour, p50, p99] = /** @type {HTMLElement[]} */ ([...row.children]);
    const [base, labels, type] = /** @type {HTMLElement[]} */ ([...called.children]);
    const parts = parse(tab);
    const said = rows.get(tab);
    const isCounted = said?.sparkline != null;
    say(base, parts.base);
    say(labels, said?.error ? String(said.error) : parts.labels.map(([key, value]) => `${key}=${value}`).join("  "));
    say(type, catalogue.types[tab] ?? "");
    row.title = tab;
    drawSpark(/** @type {any} */ (spark.firstChild), beginning.since(said?.sparkline));
    say(rate, !said || said.error ? "" : isCounted ? `${format.number((said["1m"] ?? 0) / 60)}/s` : said.value === null ? "" : format.amount(said.value, said.unit));
    say(minute, isCounted ? format.count(said["1m"]) : "");
    say(hour, isCounted ? format.count(said["1h"]) : "");
    const isSpread = said && said.p50 !== null && !(said.p50 === 1 && said.p99 === 1);
    say(p50, isSpread ? format.amount(said.p50, said.unit) : "");
    say(p99, isSpread ? format.amount(said.p99, said.unit) : "");
  }

  /** @param {string[]} items */
  function look(items) {
    const now = items.slice(0, SHOWN);
    if (now.join("\n") === seen.join("\n")) return;
    seen = now;
    clearTimeout(settling);
    settling = setTimeout(() => void trying(ask(seen.filter((tab) => !rows.has(tab)))), 120);
  }

  /** @param {string[]} wanted */
  async function ask(wanted) {
    if (!wanted.length) return;
    const began = performance.now();
    const answered = await get(url("/v1/overview", { client: name, name: within(wanted, MOST_ROWS), sort: "name", limit: MOST_ROWS }));
    took = performance.now() - began;
    keep(answered);
  }

  /** @param {any[]} answered */
  function keep(answered) {
    for (const row of answered) rows.set(row.name, row);
    beginning.look(rows.values());
    say(heads.children[1], beginning.words());
    list.refresh();
  }

  function arrange() {
    const first = new Set(top);
    const all = names ?? top;
    const items = input.value.trim() ? search(all, catalogue.types, input.value) : [...top, ...all.filter((tab) => !first.has(tab))];
    say(total, input.value.trim() ? `${format.count(items.length)} of ${format.plural(all.length, "Tab")}` : names ? format.plural(all.length, "Tab") : "");
    heads.hidden = list.element.hidden = names !== null && !all.length;
    if (heads.hidden) say(total, "Nothing is kept of this Client.");
    const mark = items.join("\n");
    if (mark === drawn) return;
    drawn = mark;
    list.set(items);
  }

  function tell() {
    const life = lives.get(name);
    fill(state, lamp(name), life ? h("span", { class: "quiet" }, [ageOf(life), life.restarts === null ? "" : format.plural(life.restarts, "restart"), life.dropped ? `${format.plural(life.dropped, "event")} dropped` : "", life.heard === null ? "" : `last heard of at ${format.time(life.heard)}`].filter(Boolean).join(", ")) : null);
    const problems = (status.last?.problems ?? []).filter((/** @type {string} */ problem) => mentions(problem, name));
    wrong.hidden = !problems.length;
    fill(wrong, ...problems.map((/** @type {string} */ problem) => h("li", null, problem)));
  }

  tell();
  const ends = [
    repeat(async () => {
      const began = performance.now();
      const answered = await get(url("/v1/overview", { client: name, sort: "moves", limit: TOP }));
      top = answered.map((/** @type {any} */ row) => row.name);
      keep(answered);
      arrange();
      if (top.length < TOP) names = top;
      else names = await get(url("/v1/names", { client: name }));
      rankTook = performance.now() - began;
      await freshen();
      arrange();
      tell();
    }, () => pause(RANK_EVERY, rankTook)),
    repeat(() => ask(seen), () => pause(EVERY, took)),
    watchLives(tell),
  ];
  return {
    title: name,
    keys: { "/": ["search its Tabs", () => input.focus()] },
    end() {
      clearTimeout(settling);
      for (const end of ends) end();
      list.end();
    },
  };
}
