// A Tab: what it says now, its past in four windows, who holds how much of it, and how to ask for it elsewhere.

import { ask, get, mayChange, url } from "./api.js";
import { MOST_ROWS, catalogue, freshen } from "./catalogue.js";
import { BARS, Chart, averages, bands, cellsAs, cellsOf, colour, heat, rateOf, together } from "./charts.js";
import { copied, fill, h, say, table } from "./dom.js";
import { SECONDS, WINDOWS, WORDS, shapeOf } from "./figures.js";
import * as format from "./format.js";
import { listener, pause, repeat } from "./live.js";
import { hash, labelsOf, parse } from "./names.js";
import { pinned, togglePin } from "./pins.js";
import { curl, promql } from "./promql.js";
import { Trace, bodyOf, headline, large } from "./shapes.js";
import { Who } from "./who.js";

/** @typedef {import("./charts.js").Slot} Slot */

const NOMINAL = /** @type {Record<string, number>} */ ({ "1m": 5, "10m": 30, "1h": 150, "1d": 900 }); // seconds of a cell, at the least
const MOST_MEMBERS = 60; // Tabs of one base name of which Clients are told apart
const MOST_DRAWN = 200; // Tabs of one base name whose past is drawn, the first by name
const SLOTS_EVERY = 4000; // ms, or a pause that grows with what the answer took
const WHO_EVERY = 4000;
const PARTS = 7; // label values that are told apart; the others are one
const HUES = ["--part1", "--part2", "--part3", "--part4", "--part5", "--part6", "--part7", "--part8"];

/** What is kept from Tab to Tab. */
const kept = { window: "10m", isHeat: false };

/**
 * @param {HTMLElement} host
 * @param {string} name
 * @returns {import("./view.js").View}
 */
export function tab(host, name) {
  const { base, labels } = parse(name);
  /** @type {any} */
  let aggregate = null;
  /** @type {{type: string, unit: string | null, description: string | null}} */
  let meaning = { type: catalogue.types[name] ?? "", unit: null, description: null };
  /** @type {string[]} */
  let members = [name];
  /** @type {Record<string, Slot[]>} */
  let slots = Object.create(null); // by Tab; whatever it is called
  let since = 0;
  let at = Date.now() / 1000;
  let by = "";
  /** @type {import("./charts.js").Range | null} */
  let zoom = null;
  /** @type {import("./charts.js").Note[]} */
  let notes = [];
  let rendered = "";
  let hasSlots = true;
  let took = 0;
  let whoTook = 0;
  const listen = listener();
  let isMet = false; // until then nobody knows which Tabs these are, nor their unit

  // --- what is there ---

  const pin = h("button", { onclick: () => doPin() });
  const type = h("span", { class: "chip" });
  const description = h("p", { class: "quiet" });
  const siblings = h("p", { class: "siblings" });
  const figures = h("section", { class: "figures", "aria-label": "Now" });
  const wrong = h("p", { class: "bad", role: "status" });
  const windows = h("div", { class: "windows", role: "group", "aria-label": "Window" });
  const breakdown = h("select", { "aria-label": "Break down by label", onchange: () => ((by = breakdown.value), drawAll()) });
  const chooseHeat = h("button", { "aria-pressed": "false", onclick: () => toggleHeat() }, "Heat map");
  const whole = h("button", { hidden: true, onclick: () => setZoom(null) }, "Whole window");
  const legend = h("ul", { class: "legend" });
  const detail = h("div", { class: "detail" });
  const beside = h("details", { class: "beside", ontoggle: () => drawTable() }, h("summary", null, "The same as a table"));
  const partly = h("span", { class: "quiet" });
  const past = h("section", { class: "past", "aria-labelledby": "past" }, h("div", { class: "tools" }, h("h2", { id: "past" }, "Past", partly), h("label", { class: "quiet" }, "by ", breakdown), chooseHeat, whole, legend), windows, detail, beside);
  const body = h("section", { class: "body", "aria-label": "Figures" });
  const who = new Who();
  const elsewhere = h("section", { class: "elsewhere", "aria-label": "Elsewhere" });
  const trace = new Trace();
  fill(
    host,
    h(
      "header",
      { class: "tabhead" },
      h("h1", null, base, ...labels.map(([key, value]) => h("span", { class: "label" }, h("i", null, key), value))),
      h("div", { class: "tools" }, type, pin),
    ),
    description,
    siblings,
    wrong,
    figures,
    past,
    body,
    who.element,
    elsewhere,
  );
  const sync = `tab ${name}`;
  const thumbs = WINDOWS.map((window) => {
    const chart = new Chart({ drawing: { ...BARS, title: WORDS[window] }, height: 84, sync, small: true });
    const button = h("button", { class: "window", "aria-pressed": String(window === kept.window), "aria-label": `Show the ${WORDS[window]}`, onclick: () => choose(window) }, chart.element);
    windows.append(button);
    return { window, chart, button };
  });
  const counts = new Chart({ drawing: BARS, height: 190, sync, chosen: setZoom });
  const values = new Chart({ drawing: averages("1"), height: 220, sync, chosen: setZoom });
  detail.append(counts.element, values.element);
  doPin(false);

  // --- doing ---

  function doPin(toggle = true) {
    if (pin.hidden) return;
    if (toggle) togglePin(name);
    const is = pinned(name);
    say(pin, is ? "★ Pinned" : "☆ Pin");
    pin.setAttribute("aria-pressed", String(is));
  }

  function toggleHeat() {
    kept.isHeat = !kept.isHeat;
    drawAll();
  }

  /** @param {string} window */
  function choose(window) {
    kept.window = window;
    zoom = null;
    drawAll();
  }

  /** @param {import("./charts.js").Range | null} range */
  function setZoom(range) {
    zoom = range;
    drawAll();
  }

  /** @param {string} window */
  function rangeOf(window) {
    return { from: at - SECONDS[window], to: at };
  }

  function ownUnit() {
    return meaning.unit ?? "1";
  }

  function drawAll() {
    const all = together(Object.values(slots));
    for (const { window, chart, button } of thumbs) {
      const range = rangeOf(window);
      chart.set(cellsOf(all, NOMINAL[window], range), range, notes);
      button.setAttribute("aria-pressed", String(window === kept.window));
    }
    const range = zoom ?? rangeOf(kept.window);
    // in a part of a window as fine as it is kept
    const width = zoom ? Math.min(NOMINAL[kept.window], Math.max(5, (range.to - range.from) / 60)) : NOMINAL[kept.window];
    const cells = cellsOf(all, width, range);
    const hasBins = all.some((slot) => slot.bins);
    chooseHeat.hidden = !hasBins;
    chooseHeat.setAttribute("aria-pressed", String(kept.isHeat));
    whole.hidden = zoom === null;
    const stacks = by ? parts(cells, range) : [];
    fill(legend, ...stacks.map((stack) => h("li", null, mark(stack.colour), stack.text)));
    counts.set(cells, range, notes, stacks);
    values.use(hasBins ? (kept.isHeat ? heat(ownUnit()) : bands(ownUnit())) : averages(ownUnit()));
    values.element.hidden = !hasBins && cells.every((cell) => !cell.count || Math.abs(cell.total / cell.count - 1) < 1e-9);
    values.set(cells, range, notes);
    drawTable();
  }

  /** @param {string} fillColour */
  function mark(fillColour) {
    const found = h("span", { class: "mark" });
    found.style.backgroundColor = fillColour;
    return found;
  }

  /**
   * The cells of each value of the label, the greatest first.
   * @param {Slot[]} cells of all together
   * @param {import("./charts.js").Range} range
   */
  function parts(cells, range) {
    /** @type {Map<string, Slot[][]>} */
    const found = new Map();
    for (const [member, of] of Object.entries(slots)) {
      const value = parse(member).labels.find(([key]) => key === by)?.[1] ?? "(none)";
      const group = found.get(value);
      if (group) group.push(of);
      else found.set(value, [of]);
    }
    const groups = [...found].map(([text, several]) => ({ text, slots: together(several) }));
    const size = (/** @type {Slot[]} */ of) => of.reduce((sum, slot) => (slot.end > range.from && slot.start < range.to ? sum + slot.count : sum), 0);
    groups.sort((one, other) => size(other.slots) - size(one.slots));
    const shown = groups.slice(0, PARTS);
    const rest = groups.slice(PARTS);
    if (rest.length) shown.push({ text: `${rest.length} others`, slots: together(rest.map((one) => one.slots)) });
    return shown.map((one, place) => ({ text: one.text, colour: colour(HUES[place]), cells: cellsAs(one.slots, cells) }));
  }

  function drawTable() {
    if (!beside.open) return;
    const cells = [...counts.cells].reverse();
    const hasBins = cells.some((cell) => cell.bins);
    const heads = ["from", "to", "events", "per second", ...(hasBins ? ["p50", "p90", "p99"] : ["average"])];
    const rows = cells.map((cell) => {
      const tail = hasBins ? (values.drawing.tell(cell) === "nothing" ? [format.NONE, format.NONE, format.NONE] : values.drawing.tell(cell).split("  ").map((text) => text.replace(/^p\d+ /, ""))) : [cell.count ? format.amount(cell.total / cell.count, ownUnit()) : format.NONE];
      return [format.time(cell.start), format.time(cell.end), format.count(cell.count), format.number(rateOf(cell)), ...tail];
    });
    const before = beside.querySelector(".scroll");
    const made = table("Slots, the latest first", heads, rows, heads.map(() => true));
    if (before) before.replaceWith(made);
    else beside.append(made);
  }

  function drawNow() {
    if (!aggregate) return;
    if (aggregate.error) say(wrong, aggregate.error);
    else say(wrong, "");
    if (aggregate.error && Object.keys(aggregate).length === 1) return;
    const shape = shapeOf(aggregate);
    const first = headline(aggregate, meaning.unit);
    fill(figures, first.length ? large(first) : null);
    const value = shape === "value" ? aggregate.value : shape === "distinct" ? aggregate.distinct : shape === "values" ? aggregate.sum : null;
    if (!hasSlots && typeof value === "number") {
      trace.add(at, value, meaning.unit);
      if (!trace.element.isConnected) figures.after(trace.element);
    }
    fill(body, bodyOf(aggregate, meaning.unit, rendered));
  }

  // --- asking ---

  async function meet() {
    await freshen().catch(() => {});
    const all = labels.length ? [name] : catalogue.names.filter((one) => one === base || one.startsWith(`${base}{`));
    if (all.length) members = all;
    const isGroup = members.length > 1 || members[0] !== name;
    pin.hidden = isGroup; // a board has Tabs
    const family = catalogue.names.filter((one) => one === base || one.startsWith(`${base}{`));
    fill(siblings, labels.length && family.length > 1 ? h("a", { href: hash("tab", base) }, `All ${format.count(family.length)} of ${base}`) : null, isGroup ? h("span", { class: "quiet" }, members.length > 1 ? `${format.plural(members.length, "Tab")} of this name, together; ` : "This name has one Tab: ") : null, isGroup && members.length > 1 ? "break it down below, or open one: " : null, ...(isGroup ? members.slice(0, 12).map((one) => h("a", { class: "label", "data-key": one, href: hash("tab", one) }, parse(one).labels.map(([key, value]) => `${key}=${value}`).join(" ") || one)) : []), isGroup && members.length > 12 ? "…" : null);
    const keys = labelsOf(members);
    const options = ["", ...[...keys].filter(([, of]) => of.size > 1).map(([key]) => key)];
    if (breakdown.options.length !== options.length) fill(breakdown, ...options.map((key) => h("option", { value: key }, key || "(nothing)")));
    /** @type {HTMLElement} */ (breakdown.parentElement).hidden = options.length < 2;
    const said = await get(url("/v1/types", { name, detail: 1, limit: MOST_ROWS }));
    meaning = said[members[0]] ?? meaning;
    say(type, meaning.type);
    say(description, [meaning.description, meaning.unit && meaning.unit !== "1" ? `in ${meaning.unit}` : null].filter(Boolean).join(", "));
    if (members.length === 1) {
      listen(members, (heard) => {
        at = heard.time;
        const found = heard.aggregates[members[0]];
        if (found) {
          aggregate = found;
          drawNow();
        }
      });
    }
    isMet = true;
    if (!Object.keys(said).length) say(wrong, `Nothing is recorded under ${name}.`);
  }

  async function askWhole() {
    if (members.length === 1 && aggregate) return;
    const isMany = members.length > 1;
    const found = await get(url(isMany ? "/v1/superaggregate" : "/v1/aggregates", { name }));
    const mine = isMany ? found : found[members[0]];
    if (mine) aggregate = mine;
    drawNow();
  }

  async function askRendered() {
    if (!aggregate || !["other", "empty"].includes(shapeOf(aggregate))) return;
    const text = await ask("GET", url("/v1/aggregates", { name }), { text: true });
    rendered = text.split("\n").filter(Boolean).map((/** @type {string} */ line) => line.slice(line.indexOf(": ") + 2)).join("\n");
    drawNow();
  }

  async function askSlots() {
    if (!hasSlots) return;
    const began = performance.now();
    const found = await get(url("/v1/slots", { name, limit: MOST_DRAWN }));
    took = performance.now() - began;
    /** @type {Record<string, Slot[]>} */
    const mine = Object.create(null);
    let error = "";
    for (const member of members) {
      const one = found[member];
      if (one?.slots) {
        mine[member] = one.slots;
        since = Math.max(since, one.since);
      } else if (one?.error) error = one.error;
    }
    hasSlots = Object.keys(mine).length > 0 || !/keeps no slots/.test(error);
    const drawn = Object.keys(mine).length;
    say(partly, members.length > MOST_DRAWN ? `of the first ${format.count(drawn)} of ${format.count(members.length)} by name` : "");
    past.hidden = !drawn;
    if (!past.hidden) {
      slots = mine;
      at = Math.max(at, ...Object.values(mine).map((of) => of[of.length - 1]?.end ?? 0));
      if (Date.now() / 1000 - at < 120) at = Math.max(at, Date.now() / 1000 - 2);
      notes = await get("/v1/notes").catch(() => []);
      drawAll();
    }
  }

  async function askWho() {
    if (!isMet || members.length > MOST_MEMBERS) return;
    const began = performance.now();
    const found = await get(url("/v1/projections", { name }));
    whoTook = performance.now() - began;
    /** @type {Record<string, any>} */
    const mine = Object.create(null);
    for (const member of members) for (const [client, projection] of Object.entries(found[member] ?? {})) if (client !== "error") mine[members.length > 1 ? `${client}\n${member}` : client] = projection;
    who.set(members.length > 1 ? byClient(mine) : mine, meaning.unit);
    who.element.hidden = !Object.keys(mine).length;
  }

  function drawElsewhere() {
    const shape = aggregate ? shapeOf(aggregate) : "other";
    const lines = aggregate && !aggregate.error ? promql(name, meaning.unit, aggregate, shape) : [];
    const text = h("input", { type: "text", id: "note", maxlength: 500, placeholder: "deploy 1.4" });
    const noted = h("span", { class: "quiet", role: "status" });
    const add = async (/** @type {Event} */ event) => {
      event.preventDefault();
      if (!text.value.trim()) return;
      try {
        await ask("POST", "/v1/notes", { body: { text: text.value } });
        text.value = "";
        say(noted, "Noted.");
        await askSlots();
      } catch (error) {
        say(noted, /** @type {Error} */ (error).message);
      }
    };
    fill(elsewhere, h("h2", { id: "elsewhere" }, "Elsewhere"), ...lines.map((line) => copied("PromQL", line)), copied("curl", curl(url("/v1/aggregates", { name }))), mayChange() ? h("form", { class: "note", onsubmit: add }, h("label", { for: "note" }, "Note this moment "), text, h("button", { type: "submit" }, "Note"), noted) : null);
  }

  let isDrawn = false;
  const ends = [
    repeat(async () => {
      await meet();
      await askWhole();
      await askSlots();
      if (!isDrawn && aggregate) {
        isDrawn = true;
        drawElsewhere();
      }
      drawNow();
      if (!who.element.childElementCount) await askWho();
      await askRendered();
    }, () => pause(SLOTS_EVERY, took)),
    repeat(askWho, () => pause(WHO_EVERY, whoTook)),
  ];
  past.hidden = true;
  return {
    title: name,
    keys: {
      1: ["the last minute", () => choose("1m")],
      2: ["the last 10 minutes", () => choose("10m")],
      3: ["the last hour", () => choose("1h")],
      4: ["the last day", () => choose("1d")],
      p: ["pin it", () => doPin()],
      a: ["heat map or percentiles", () => toggleHeat()],
      l: ["break down by label", () => breakdown.focus()],
      "+": ["closer", () => closer(0.5)],
      "-": ["farther", () => closer(2)],
      0: ["the whole window", () => setZoom(null)],
      v: ["the table beside the charts", () => (beside.open = !beside.open)],
    },
    end() {
      for (const end of ends) end();
      for (const { chart } of thumbs) chart.end();
      counts.end();
      values.end();
    },
  };

  /** @param {number} times */
  function closer(times) {
    const { from, to } = zoom ?? rangeOf(kept.window);
    const half = ((to - from) * times) / 2;
    const middle = times < 1 ? to - half : (from + to) / 2;
    if (2 * half >= SECONDS[kept.window]) setZoom(null);
    else setZoom({ from: Math.max(middle - half, at - SECONDS[kept.window]), to: Math.min(middle + half, at) });
  }
}

/**
 * Of several Tabs the figures of each Client that add up: counts and totals, and values of their own kind.
 * @param {Record<string, any>} projections by Client and Tab
 */
function byClient(projections) {
  /** @type {Record<string, any>} */
  const found = Object.create(null); // by Client; whatever it is called
  for (const [key, projection] of Object.entries(projections)) {
    const client = key.slice(0, key.indexOf("\n"));
    const mine = (found[client] ??= {});
    for (const window of WINDOWS) {
      const one = projection[window];
      if (!one) continue;
      const sum = (mine[window] ??= { count: 0, total: 0, average: null });
      sum.count += one.count;
      sum.total += one.total;
      sum.average = sum.count ? sum.total / sum.count : null;
      if (one.p99 !== null && one.p99 !== undefined) sum["worst p99"] = Math.max(sum["worst p99"] ?? -Infinity, one.p99);
    }
    if (!projection["1m"]) for (const path of ["count", "total", "value"]) if (typeof projection[path] === "number") mine[path] = (mine[path] ?? 0) + projection[path];
  }
  return found;
}
