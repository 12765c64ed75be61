// Sparklines: events in each of the last 60 minutes, as an area, and what came since somebody looks; what nobody knows is left out.

import { svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 24;
const LEAST_MINUTES = 10; // that a sparkline is wide, however new the system is
const MINUTE = 60_000; // ms
const SEEN_SECONDS = 60; // of what came since somebody looks
const FIRST = 2; // looks, before the events between two of them are those of the time between them: the first may be of a while ago

/**
 * Since when anything was recorded, as far as sparklines tell: before that the system was not there, and nothing is said of then.
 */
export class Beginning {
  constructor() {
    this.minute = Infinity; // the first of the sparklines in which anything was recorded
    this.looked = -Infinity;
  }

  /** @param {Iterable<{sparkline?: (number | null)[] | null}>} rows */
  look(rows) {
    if (performance.now() - this.looked > MINUTE) {
      this.minute = Infinity; // minutes move on
      this.looked = performance.now();
    }
    for (const row of rows) {
      const first = row?.sparkline?.findIndex((count) => count) ?? -1;
      if (first >= 0) this.minute = Math.min(this.minute, first);
    }
  }

  /**
   * The minutes since then, at least some.
   * @param {(number | null)[] | null | undefined} counts
   */
  since(counts) {
    if (!counts) return null;
    const first = Math.min(this.minute, counts.length - LEAST_MINUTES);
    return counts.slice(first).map((count, at) => (first + at < this.minute ? null : count));
  }

  /** How long that is, in words. */
  words() {
    return this.minute <= 1 || this.minute === Infinity ? "last hour" : `last ${Math.max(LEAST_MINUTES, 60 - this.minute)} min`;
  }
}

/** What came of Tabs since somebody looks: how many events each second, or the value of what counts none. */
export class Seen {
  constructor() {
    /** @type {Map<string, {times: number[], values: number[], ever: number | null}>} */
    this.by = new Map();
  }

  /**
   * @param {string} name
   * @param {number} time
   * @param {number | null} ever events that were ever counted, or of the last day
   * @param {number | null} value where none are
   */
  add(name, time, ever, value) {
    let mine = this.by.get(name);
    if (!mine) this.by.set(name, (mine = { times: [], values: [], ever: null }));
    const last = mine.times[mine.times.length - 1];
    if (last !== undefined && time <= last) return;
    const found = ever === null ? value : mine.ever === null ? null : Math.max(0, ever - mine.ever) / Math.max(time - (last ?? time - 1), 0.2);
    mine.ever = ever;
    if (found === null && (ever === null || last !== undefined)) return;
    mine.times.push(time);
    mine.values.push(ever !== null && mine.times.length <= FIRST ? NaN : /** @type {number} */ (found));
    while (mine.times[0] < time - SEEN_SECONDS - 2) {
      mine.times.shift();
      mine.values.shift();
    }
  }

  /** @param {Set<string>} names forget all others */
  keep(names) {
    for (const name of this.by.keys()) if (!names.has(name)) this.by.delete(name);
  }
}

/**
 * Draw what came in steps: nothing is known of what lies between.
 * @param {SVGElement} spark
 * @param {{times: number[], values: number[]} | undefined} seen
 * @param {number} now
 * @param {boolean} fromZero
 */
export function drawSeen(spark, seen, now, fromZero) {
  let line = "";
  let area = "";
  const known = seen?.values.filter((value) => !Number.isNaN(value)) ?? [];
  if (seen && known.length) {
    const low = fromZero ? 0 : Math.min(...known);
    const high = Math.max(...known);
    const y = (/** @type {number} */ value) => (high > low ? HEIGHT - 1.5 - ((value - low) / (high - low)) * (HEIGHT - 4) : fromZero ? HEIGHT - 1.5 : HEIGHT / 2).toFixed(1);
    const x = (/** @type {number} */ time) => (WIDTH * Math.max(0, 1 - (now - time) / SEEN_SECONDS)).toFixed(1);
    seen.times.forEach((time, at) => {
      const value = seen.values[at];
      if (Number.isNaN(value)) return;
      const from = at ? seen.times[at - 1] : time;
      line += line ? `V${y(value)}H${x(time)}` : `M${x(from)},${y(value)}H${x(time)}`;
    });
    if (fromZero && line) {
      const start = line.slice(1, line.indexOf(","));
      area = `${line}V${HEIGHT}H${start}Z`;
    }
  }
  spark.children[0].setAttribute("d", area);
  spark.children[1].setAttribute("d", line);
}

/** @returns {SVGElement} */
export function sparkline() {
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "spark", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area", d: "" }),
    svg("path", { class: "line", d: "", "vector-effect": "non-scaling-stroke" }),
  );
}

/**
 * @param {SVGElement} spark
 * @param {(number | null)[] | null} counts
 */
export function drawSpark(spark, counts) {
  let line = "";
  let area = "";
  if (counts && counts.length > 1) {
    const most = Math.max(...counts.map((count) => count ?? 0)) || 1;
    const step = WIDTH / (counts.length - 1);
    /** @type {string[]} */
    let run = [];
    const flush = () => {
      if (run.length > 1) {
        line += `M${run.join("L")}`;
        const first = run[0].split(",")[0];
        const last = run[run.length - 1].split(",")[0];
        area += `M${first},${HEIGHT}L${run.join("L")}L${last},${HEIGHT}Z`;
      }
      run = [];
    };
    counts.forEach((count, at) => {
      if (count === null) flush();
      else run.push(`${(at * step).toFixed(1)},${(HEIGHT - 1.5 - (count / most) * (HEIGHT - 4)).toFixed(1)}`);
    });
    flush();
  }
  spark.children[0].setAttribute("d", area);
  spark.children[1].setAttribute("d", line);
}
