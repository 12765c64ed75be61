// An Aggregate in the shape that suits it: windows as a table, values as a distribution, top values as bars, text as it is rendered.

import { fill, h, say, style, svg, table } from "./dom.js";
import { WINDOWS, WORDS, shapeOf } from "./figures.js";
import * as format from "./format.js";

const MOST_ROWS = 200;
const LONG = 40; // characters of a value that stand in a line
const TRACE = 150; // values of a trace

/**
 * Figures, large.
 * @param {[string, string][]} figures
 */
export function large(figures) {
  return h("dl", { class: "large" }, ...figures.map(([word, value]) => h("div", null, h("dt", null, word), h("dd", null, value))));
}

/**
 * The figures that stand first.
 * @param {any} aggregate
 * @param {string | null} unit
 * @returns {[string, string][]}
 */
export function headline(aggregate, unit) {
  const shape = shapeOf(aggregate);
  const amount = (/** @type {any} */ value) => format.amount(value, unit);
  if (shape === "windows") {
    const minute = aggregate["1m"];
    const spread = "p50" in minute ? minute : aggregate.pct;
    const isOfMinute = "p50" in minute;
    const isOneByOne = spread?.min === 1 && spread?.max === 1; // what counts one by one has nothing more to tell
    if (isOneByOne) return [["per second", format.number(minute.count / 60)], ["last minute", format.count(minute.count)], ["last hour", format.count(aggregate["1h"].count)], ["last day", format.count(aggregate["1d"].count)]];
    return [
      ["per second", format.number(minute.count / 60)],
      ["last minute", format.count(minute.count)],
      ["last hour", format.count(aggregate["1h"].count)],
      ...(minute.average !== undefined ? /** @type {[string, string][]} */ ([["average", amount(minute.average)]]) : []),
      ...(spread ? /** @type {[string, string][]} */ ([[isOfMinute ? "p50, last minute" : "p50, ever", amount(spread.p50)], [isOfMinute ? "p99, last minute" : "p99, ever", amount(spread.p99)]]) : []),
    ];
  }
  if (shape === "values") {
    if (aggregate.average === null || aggregate.average === undefined) return [["Clients", format.count(aggregate.clients)], ["different values", format.count(Object.keys(aggregate.values).length)]];
    return [["sum", amount(aggregate.sum)], ["average", amount(aggregate.average)], ["least", amount(aggregate.min)], ["greatest", amount(aggregate.max)], ["Clients", format.count(aggregate.clients)]];
  }
  if (shape === "value") return [["now", typeof aggregate.value === "number" ? amount(aggregate.value) : String(aggregate.value ?? format.NONE)]];
  if (shape === "distinct") return [["distinct values", format.count(Math.round(aggregate.distinct))]];
  if (shape === "spread") return [["ever", format.count(aggregate.count)], ["p50", amount(aggregate.p50)], ["p90", amount(aggregate.p90)], ["p99", amount(aggregate.p99)], ["greatest", amount(aggregate.max)]];
  if (shape === "totals") return [["events", format.count(aggregate.count)], ["total", amount(aggregate.total)], ["average", amount(aggregate.average)], ["least", amount(aggregate.min)], ["greatest", amount(aggregate.max)]];
  if (shape === "top") return [["values shown", format.count(aggregate.top.length)]];
  if (shape === "recent") return [["values kept", format.count(aggregate.values.length)]];
  return [];
}

/**
 * The body of an Aggregate.
 * @param {any} aggregate
 * @param {string | null} unit
 * @param {string} rendered its text by the Type's own `render`
 * @returns {Node}
 */
export function bodyOf(aggregate, unit, rendered) {
  const shape = shapeOf(aggregate);
  if (shape === "windows") return windows(aggregate, unit);
  if (shape === "spread") return spread(aggregate, unit);
  if (shape === "values") return values(aggregate, unit);
  if (shape === "top") return bars("The most frequent values", aggregate.top.slice(0, MOST_ROWS).map((/** @type {any} */ [value, count, error]) => [String(typeof value === "string" ? value : JSON.stringify(value)), count, error ? `${format.count(count)} ± ${format.count(error)}` : format.count(count)]));
  if (shape === "recent") {
    const rows = [...aggregate.values].reverse().slice(0, MOST_ROWS);
    return table("Recent values", ["when", "value"], rows.map(([time, value]) => [h("span", { title: format.moment(time) }, format.time(time)), typeof value === "string" ? value : JSON.stringify(value)]));
  }
  if (shape === "other") return h("pre", { class: "rendered", tabindex: 0 }, rendered || JSON.stringify(aggregate, null, 2));
  if (shape === "empty") return h("p", { class: "quiet" }, rendered && rendered !== "{}" ? rendered : "This Type keeps nothing to show.");
  return h("span");
}

/**
 * @param {any} aggregate
 * @param {string | null} unit
 */
function windows(aggregate, unit) {
  const keys = Object.keys(aggregate["1m"]);
  const rows = WINDOWS.map((window) => [WORDS[window], format.number(aggregate[window].count / /** @type {any} */ ({ "1m": 60, "10m": 600, "1h": 3600, "1d": 86400 })[window]), ...keys.map((key) => cell(key, aggregate[window][key], unit))]);
  const found = table("The four windows", ["", "per second", ...keys], rows, [false, true, ...keys.map(() => true)]);
  return aggregate.pct ? h("div", null, found, h("h3", null, "All values ever"), spread(aggregate.pct, unit)) : found;
}

/**
 * @param {any} of
 * @param {string | null} unit
 */
function spread(of, unit) {
  const keys = Object.keys(of);
  return table("All values", keys, [keys.map((key) => cell(key, of[key], unit))], keys.map(() => true));
}

/**
 * @param {string} key
 * @param {any} value
 * @param {string | null} unit
 */
function cell(key, value, unit) {
  return key === "count" ? format.count(value) : typeof value === "number" ? format.amount(value, unit) : value === null || value === undefined ? format.NONE : String(value);
}

/**
 * Values of Clients: how many have which.
 * @param {any} aggregate
 * @param {string | null} unit
 */
function values(aggregate, unit) {
  /** @type {[string, number][]} */
  const all = Object.entries(aggregate.values);
  const isNumeric = aggregate.average !== null && aggregate.average !== undefined;
  if (isNumeric && all.every(([, clients]) => clients === 1)) return h("span"); // the table by Client says the same
  all.sort((one, other) => (isNumeric ? Number(one[0]) - Number(other[0]) : other[1] - one[1]));
  return bars(isNumeric ? "Values, and how many Clients have each" : "What Clients say", all.slice(0, MOST_ROWS).map(([value, clients]) => [isNumeric ? format.amount(Number(value), unit) : value, clients, format.plural(clients, "Client")]));
}

/**
 * @param {string} caption
 * @param {[string, number, string][]} rows
 */
export function bars(caption, rows) {
  const most = Math.max(...rows.map(([, size]) => size), 0) || 1;
  return h(
    "table",
    { class: "bars" },
    h("caption", { class: "unseen" }, caption),
    h(
      "tbody",
      null,
      ...rows.map(([text, size, note]) => {
        const bar = h("span", { class: "bar" });
        style(bar, "--share", String(Math.max(0, size) / most));
        return h("tr", null, h("th", { scope: "row", class: text.length > LONG ? "long" : null }, text), h("td", { class: "grow" }, bar), h("td", { class: "number" }, note));
      }),
    ),
  );
}

/** A value over the time since the page was opened: for what keeps no slots. */
export class Trace {
  constructor() {
    /** @type {[number, number][]} */
    this.points = [];
    this.line = svg("path", { class: "line", d: "", "vector-effect": "non-scaling-stroke" });
    this.note = h("figcaption", { class: "quiet" });
    /** @type {string | null} */
    this.unit = null;
    this.beside = h("details", { class: "beside", ontoggle: () => this.#drawTable() }, h("summary", null, "The same as a table"));
    this.element = h("figure", { class: "chart trace" }, this.note, svg("svg", { viewBox: "0 0 600 90", preserveAspectRatio: "none", "aria-hidden": "true" }, this.line), this.beside);
  }

  #drawTable() {
    if (!this.beside.open) return;
    const rows = [...this.points].reverse().map(([time, value]) => [format.time(time), format.amount(value, this.unit)]);
    const made = table("Values since you look, the latest first", ["when", "value"], rows, [false, true]);
    const before = this.beside.querySelector(".scroll");
    if (!before) this.beside.append(made);
    else fill(before, ...made.childNodes); // where it was scrolled to it stays
  }

  /**
   * @param {number} time
   * @param {number} value
   * @param {string | null} unit
   */
  add(time, value, unit) {
    const last = this.points[this.points.length - 1];
    if (last && time <= last[0]) return;
    this.points.push([time, value]);
    if (this.points.length > TRACE) this.points.shift();
    const first = this.points[0][0];
    const span = Math.max(time - first, 1);
    const low = Math.min(...this.points.map(([, one]) => one));
    const high = Math.max(...this.points.map(([, one]) => one));
    const y = (/** @type {number} */ one) => (86 - ((one - low) / (high - low || 1)) * 80).toFixed(1);
    let path = "";
    this.points.forEach(([at, one], place) => {
      const x = (((at - first) / span) * 600).toFixed(1);
      path += place ? `H${x}V${y(one)}` : `M${x},${y(one)}`; // in steps: nothing is known of what lies between
    });
    this.line.setAttribute("d", path);
    this.unit = unit;
    this.#drawTable();
    say(this.note, `Since you look: ${format.lasting(time - first)}, between ${format.amount(low, unit)} and ${format.amount(high, unit)}. Its Type keeps no past.`);
  }
}
