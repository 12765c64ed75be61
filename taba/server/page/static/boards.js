// Boards: Tabs side by side, in the order of whoever made it; in the address for who is sent it, in the store for everybody.

import { ask, get, mayChange, url } from "./api.js";
import { MOST_HEARD, MOST_ROWS, catalogue, freshen, within } from "./catalogue.js";
import { fill, h, say, style } from "./dom.js";
import { figuresOf, shapeOf } from "./figures.js";
import * as format from "./format.js";
import { listener, repeat } from "./live.js";
import { hash, parse } from "./names.js";
import { MOST_PINS, pins, setPins } from "./pins.js";
import { Beginning, Seen, drawSeen, drawSpark, sparkline } from "./spark.js";

const MINIS = 3; // of the most frequent values that a card shows
const NAME = /^(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}$/;

/**
 * The Tabs that an address names: `=` and a JSON list.
 * @param {string} what
 * @returns {string[] | null}
 */
function inAddress(what) {
  if (!what.startsWith("=")) return null;
  try {
    const found = JSON.parse(what.slice(1));
    return Array.isArray(found) ? [...new Set(found.filter((name) => typeof name === "string"))].slice(0, MOST_PINS) : [];
  } catch {
    return [];
  }
}

/**
 * @param {HTMLElement} host
 * @param {string} what
 * @returns {import("./view.js").View}
 */
export function boards(host, what) {
  let name = what && !what.startsWith("=") ? what : "";
  /** @type {string[]} */
  let tabs = inAddress(what) ?? (name ? [] : pins());
  const isMine = what === "";
  let isMet = !name; // until then nobody knows which Tabs the board has
  const listen = listener();
  /** @type {Map<string, any>} */
  const rows = new Map();
  /** @type {Map<string, any>} */
  const now = new Map();
  const beginning = new Beginning();
  const latest = new Seen();
  let heard = 0;
  /** @type {Map<string, HTMLElement>} */
  const cards = new Map();
  const grid = h("ol", { class: "board", "aria-label": "Pinned Tabs" });
  const others = h("nav", { class: "tools", "aria-label": "Boards in the store" });
  const field = h("input", { type: "text", "aria-label": "Name of the board", placeholder: "name", value: name, maxlength: 64 });
  const told = h("span", { class: "quiet", role: "status" });
  const save = h("form", { class: "tools", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), void keep()) }, field, h("button", { type: "submit", id: "keep" }, "Keep for everybody"), name ? h("button", { type: "button", id: "forget", onclick: () => void remove() }, "Delete") : null);
  const empty = h("p", { class: "empty" });
  fill(host, h("h1", null, name || (isMine ? "My board" : "A board")), others, h("div", { class: "tools" }, h("a", { class: "button", id: "share" }, "Link to this"), mayChange() ? save : null, told), empty, grid);
  const share = /** @type {HTMLAnchorElement} */ (host.querySelector("#share"));

  async function keep() {
    const wanted = field.value.trim();
    if (!NAME.test(wanted)) return say(told, "A name takes 1 to 64 letters, digits, _, . and -; not . or ..");
    try {
      await ask("PUT", `/v1/boards/${encodeURIComponent(wanted)}`, { body: { tabs } });
      say(told, "Kept.");
      if (wanted !== name) location.hash = hash("board", wanted);
    } catch (error) {
      say(told, /** @type {Error} */ (error).message);
    }
  }

  async function remove() {
    try {
      await ask("DELETE", `/v1/boards/${encodeURIComponent(name)}`);
      location.hash = "#/board";
    } catch (error) {
      say(told, /** @type {Error} */ (error).message);
    }
  }

  /** @param {string} tab */
  function card(tab) {
    const { base, labels } = parse(tab);
    const value = h("b", { class: "value" });
    const small = h("span", { class: "quiet" });
    const move = (/** @type {number} */ by) => () => shift(tab, by);
    const found = h(
      "li",
      { class: "card", tabindex: 0, "data-tab": tab },
      h("a", { href: hash("tab", tab), class: "name", title: tab }, base, ...labels.map(([key, text]) => h("span", { class: "label" }, h("i", null, key), text))),
      value,
      small,
      h("div", { class: "minis" }),
      sparkline(),
      h("div", { class: "corner" }, h("button", { class: "plain", "aria-label": `Move ${tab} forward`, onclick: move(-1) }, "←"), h("button", { class: "plain", "aria-label": `Move ${tab} back`, onclick: move(1) }, "→"), h("button", { class: "plain", "aria-label": `Take ${tab} off the board`, onclick: () => take(tab) }, "✕")),
    );
    found.addEventListener("keydown", (event) => {
      if (event.target !== found) return;
      const at = tabs.indexOf(tab);
      /** @type {Record<string, () => void>} */
      const doing = {
        "<": () => shift(tab, -1),
        ">": () => shift(tab, 1),
        Delete: () => take(tab),
        Enter: () => (location.hash = hash("tab", tab)),
        ArrowRight: () => cards.get(tabs[Math.min(at + 1, tabs.length - 1)])?.focus(),
        ArrowLeft: () => cards.get(tabs[Math.max(at - 1, 0)])?.focus(),
      };
      if (!doing[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      doing[event.key]();
    });
    return found;
  }

  /**
   * @param {string} tab
   * @param {number} by
   */
  function shift(tab, by) {
    const at = tabs.indexOf(tab);
    const to = at + by;
    if (to < 0 || to >= tabs.length) return;
    tabs.splice(to, 0, ...tabs.splice(at, 1));
    changed(tab);
  }

  /** @param {string} tab */
  function take(tab) {
    const at = tabs.indexOf(tab);
    tabs = tabs.filter((one) => one !== tab);
    changed(tabs[Math.min(at, tabs.length - 1)]);
  }

  /** @param {string} [focused] */
  function changed(focused) {
    if (isMine) setPins(tabs);
    else if (!name) history.replaceState(null, "", hash("board", `=${JSON.stringify(tabs)}`));
    else if (mayChange()) say(told, "Changed here: keep it for everybody.");
    arrange();
    if (focused) cards.get(focused)?.focus();
  }

  function arrange() {
    for (const [tab, element] of cards) {
      if (!tabs.includes(tab)) {
        element.remove();
        cards.delete(tab);
      }
    }
    for (const tab of tabs) {
      if (!cards.has(tab)) cards.set(tab, card(tab));
      grid.append(/** @type {HTMLElement} */ (cards.get(tab)));
    }
    empty.hidden = tabs.length > 0;
    say(empty, name ? "This board has no Tabs." : "Nothing is pinned yet: the star of a Tab puts it here.");
    share.href = hash("board", `=${JSON.stringify(tabs)}`);
    share.hidden = !tabs.length;
    listen(within(tabs, MOST_HEARD), (said) => {
      heard = said.time;
      for (const [tab, aggregate] of Object.entries(said.aggregates)) {
        now.set(tab, aggregate);
        if (aggregate?.error) continue;
        const { ever, value } = figuresOf(aggregate);
        latest.add(tab, heard, ever, value);
      }
      draw();
    });
    draw();
  }

  function draw() {
    for (const [tab, element] of cards) {
      const [, value, small, minis, spark] = /** @type {any[]} */ ([...element.children]);
      const aggregate = now.get(tab);
      const row = rows.get(tab);
      const unit = row?.unit ?? null;
      const figures = aggregate ? figuresOf(aggregate) : null;
      const shape = aggregate ? shapeOf(aggregate) : "";
      if (aggregate?.error) {
        say(value, "?");
        say(small, String(aggregate.error));
      } else if (shape === "top") {
        say(value, String(aggregate.top[0]?.[0] ?? format.NONE));
        say(small, "the most frequent");
        fill(minis, ...mini(aggregate.top));
      } else if (figures) {
        say(value, figures.rate !== null ? format.number(figures.rate) : shape === "spread" ? format.count(aggregate.count) : (figures.text ?? format.amount(figures.value ?? figures.count, unit)));
        value.classList.toggle("text", figures.rate === null && figures.text !== null);
        say(small, about(shape, figures, aggregate, unit));
      } else if (row === null) {
        say(value, format.NONE);
        say(small, "nothing is recorded under this name");
      }
      if (row?.sparkline) drawSpark(spark, beginning.since(row.sparkline));
      else drawSeen(spark, latest.by.get(tab), heard, false);
    }
  }

  /**
   * What the large figure of a card is.
   * @param {string} shape
   * @param {import("./figures.js").Figures} figures
   * @param {any} aggregate
   * @param {string | null} unit
   */
  function about(shape, figures, aggregate, unit) {
    const whole = (/** @type {string} */ text) => text.replaceAll(" ", "\u00a0"); // a card is narrow: no line ends before a unit
    const spread =
      figures.p99 !== null && figures.p99 !== 1 ? [whole(`p50 ${format.amount(figures.p50, unit)}`), whole(`p99 ${format.amount(figures.p99, unit)}`)] : [];
    if (figures.rate !== null) return ["a second", ...spread].join(" · ");
    if (shape === "spread") return ["ever", ...spread].join(" · ");
    if (shape === "totals") return "total, ever";
    if (shape === "distinct") return "distinct";
    if (shape === "recent") return "the latest";
    if (shape !== "values") return "now";
    if (figures.text !== null) return `${format.count(aggregate.values[figures.text])} of ${format.plural(aggregate.clients, "Client")}`;
    return `of ${format.plural(aggregate.clients, "Client")}${aggregate.clients > 1 ? ", together" : ""}`;
  }

  /**
   * The most frequent values, beside each other.
   * @param {any[]} top
   */
  function mini(top) {
    const shown = top.slice(0, MINIS).filter((one) => Array.isArray(one) && typeof one[1] === "number");
    const most = Math.max(...shown.map(([, count]) => count), 1);
    return shown.map(([text, count]) => {
      const bar = h("span", { class: "bar" });
      style(bar, "--share", String(Math.max(0, count) / most));
      return h("div", null, h("span", null, typeof text === "string" ? text : JSON.stringify(text)), h("span", null, bar), h("span", { class: "number" }, format.count(count)));
    });
  }

  const ends = [
    repeat(async () => {
      let isRefused = false; // a token that is bound sees no boards of others
      const all = await get("/v1/boards").catch((failure) => {
        if (failure.status !== 403) throw failure;
        isRefused = true;
        return {};
      });
      fill(others, h("a", { href: "#/board", "aria-current": isMine ? "page" : null }, "mine"), ...Object.keys(all).map((one) => h("a", { href: hash("board", one), "data-key": one, "aria-current": one === name ? "page" : null }, one)));
      if (!isMet) {
        isMet = Object.hasOwn(all, name);
        if (isMet) tabs = all[name].tabs;
        else say(told, `There is no board ${name}.`);
        arrange();
      }
      return !isRefused;
    }, 15_000),
    repeat(async () => {
      if (!catalogue.names.length) {
        await freshen();
        arrange(); // what a name means is known now
      }
      if (!tabs.length) return;
      const found = await get(url("/v1/overview", { name: within(tabs, MOST_ROWS), sort: "name", limit: MOST_ROWS }));
      for (const tab of tabs) rows.set(tab, null);
      for (const row of found) if (rows.has(row.name)) rows.set(row.name, row);
      beginning.look(found);
      draw();
    }, 5000),
  ];
  arrange();
  return {
    title: name || "Board",
    keys: { "< >": ["move the card that is chosen", () => {}], Delete: ["take the card off", () => {}], k: ["keep it under a name", () => field.focus()] },
    end: () => ends.forEach((end) => end()),
  };
}
