// Charts of slots at their own widths: bars of counts, bands of percentiles, a heat map. uPlot has axes, cursor and zoom; what is drawn
// in them is drawn here, slot by slot: nothing is interpolated, and where nothing is kept nothing is drawn.

import { h, say } from "./dom.js";
import * as format from "./format.js";

/** @typedef {{start: number, end: number, count: number, total: number, low?: number, high?: number, bins?: [number, number][]}} Slot */
/** @typedef {{time: number, text: string}} Note */
/** @typedef {{from: number, to: number}} Range */

const RANKS = [0.25, 0.5, 0.75, 0.9, 0.99];
const ERROR = 0.99; // a bin's upper bound times this is within 1 % of all that it counts

/** @param {string} name */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const EDGE = 0.25; // seconds by which slots that only touch may seem to overlap: what is not over yet ends now

/**
 * Slots joined to cells of at least `width` seconds; each cell from the beginning of its first slot to the end of its last. Of several Tabs or
 * Clients one may be kept in wider slots than another: what overlaps is one cell, as wide as the widest of it, for nobody knows more.
 * @param {Slot[]} slots
 * @param {number} width
 * @param {Range} range
 * @returns {Slot[]}
 */
export function cellsOf(slots, width, range) {
  /** @type {Slot[]} */
  const cells = [];
  let key = NaN;
  for (const slot of slots) {
    if (slot.end <= range.from || slot.start >= range.to) continue;
    const at = Math.floor(slot.start / width);
    const last = cells[cells.length - 1];
    if (last && (at === key || slot.start < last.end - EDGE)) {
      last.end = Math.max(last.end, slot.end);
      last.count += slot.count;
      last.total += slot.total;
      if (slot.low !== undefined && slot.count) last.low = Math.min(last.low ?? Infinity, slot.low);
      if (slot.high !== undefined && slot.count) last.high = Math.max(last.high ?? -Infinity, slot.high);
      if (slot.bins) last.bins = joined(last.bins ?? [], slot.bins);
    } else {
      cells.push(bare(slot));
      key = at;
    }
  }
  return cells;
}

/**
 * What of slots lies in each of these cells, which are made of them and of others.
 * @param {Slot[]} slots
 * @param {Slot[]} cells
 * @returns {Slot[]}
 */
export function cellsAs(slots, cells) {
  const found = cells.map((cell) => ({ start: cell.start, end: cell.end, count: 0, total: 0 }));
  let at = 0;
  for (const slot of slots) {
    while (at < found.length && found[at].end - EDGE <= slot.start) at++;
    const cell = found[at];
    if (!cell) break;
    if (slot.end <= cell.start) continue; // outside of what is shown
    cell.count += slot.count;
    cell.total += slot.total;
  }
  return found;
}

/**
 * A slot to add others to; of an empty one neither the least nor the greatest value counts.
 * @param {Slot} slot
 * @returns {Slot}
 */
function bare(slot) {
  const { low, high, ...rest } = slot;
  return slot.count && low !== undefined && high !== undefined ? { ...rest, low, high } : rest;
}

/**
 * @param {[number, number][]} one
 * @param {[number, number][]} other
 */
function joined(one, other) {
  /** @type {[number, number][]} */
  const found = [];
  let a = 0;
  let b = 0;
  while (a < one.length || b < other.length) {
    if (b >= other.length || (a < one.length && one[a][0] < other[b][0])) found.push(one[a++]);
    else if (a >= one.length || other[b][0] < one[a][0]) found.push(other[b++]);
    else found.push([one[a][0], one[a++][1] + other[b++][1]]);
  }
  return found;
}

/**
 * Slots of several Tabs as those of one: slots of one start and end are one.
 * @param {Slot[][]} several
 * @returns {Slot[]}
 */
export function together(several) {
  if (several.length === 1) return several[0];
  /** @type {Map<string, Slot>} */
  const found = new Map();
  for (const slot of several.flat()) {
    const key = `${slot.start} ${Math.round(slot.end)}`;
    const known = found.get(key);
    if (!known) found.set(key, bare(slot));
    else {
      known.count += slot.count;
      known.total += slot.total;
      if (slot.low !== undefined && slot.count) known.low = Math.min(known.low ?? Infinity, slot.low);
      if (slot.high !== undefined && slot.count) known.high = Math.max(known.high ?? -Infinity, slot.high);
      if (slot.bins) known.bins = joined(known.bins ?? [], slot.bins);
    }
  }
  return [...found.values()].sort((one, other) => one.start - other.start || one.end - other.end);
}

/**
 * The values below which the shares RANKS of a cell lie; null where there are none.
 * @param {Slot} cell
 * @param {number[]} [ranks]
 * @returns {number[] | null}
 */
export function quantiles(cell, ranks = RANKS) {
  const bins = cell.bins;
  if (!bins?.length || !cell.count) return null;
  const whole = bins.reduce((sum, [, count]) => sum + count, 0);
  return ranks.map((rank) => {
    let left = Math.floor(rank * (whole - 1)) + 1;
    let value = bins[bins.length - 1][0];
    for (const [upper, count] of bins) {
      left -= count;
      if (left <= 0) {
        value = upper;
        break;
      }
    }
    const estimate = value > 0 ? value * ERROR : value;
    return Math.min(Math.max(estimate, cell.low ?? -Infinity), cell.high ?? Infinity);
  });
}

/** @param {Slot} cell */
export function rateOf(cell) {
  return cell.count / Math.max(cell.end - cell.start, 1);
}

/**
 * @typedef {object} Drawing
 * @property {string} title
 * @property {string} unit
 * @property {boolean} [log]
 * @property {(cells: Slot[]) => [number, number]} extent of the y axis
 * @property {(u: any, cells: Slot[], stacks: {cells: Slot[], colour: string, text: string}[]) => void} draw
 * @property {(cell: Slot) => string} tell
 */

/** @type {Drawing} */
export const BARS = {
  title: "Events per second",
  unit: "1",
  extent: (cells) => [0, Math.max(...cells.map(rateOf), 0) * 1.08 || 1],
  draw(u, cells, stacks) {
    const base = u.valToPos(0, "y", true);
    if (!stacks.length) {
      for (const cell of cells) box(u, cell, base, u.valToPos(rateOf(cell), "y", true), colour("--accent"), 0.85);
      return;
    }
    /** @type {Map<number, number>} */
    const heights = new Map();
    for (const stack of stacks) {
      for (const cell of stack.cells) {
        const below = heights.get(cell.start) ?? 0;
        const above = below + rateOf(cell);
        box(u, cell, u.valToPos(below, "y", true), u.valToPos(above, "y", true), stack.colour, 0.92);
        heights.set(cell.start, above);
      }
    }
  },
  tell: (cell) => `${format.number(rateOf(cell))}/s, ${format.count(cell.count)} in ${format.lasting(cell.end - cell.start)}`,
};

/**
 * @param {string} unit
 * @returns {Drawing}
 */
export function bands(unit) {
  return {
    title: "Percentiles: line p50, bands to p75, p90 and p99",
    unit,
    log: true,
    extent(cells) {
      const found = cells.map((cell) => quantiles(cell)).filter((one) => one !== null);
      const low = Math.min(...found.map((one) => one[0]));
      const high = Math.max(...found.map((one) => one[4]));
      return found.length ? (low > 0 ? [low / 1.6, Math.max(high * 1.3, low * 2)] : [Math.min(low * 1.1, 0), Math.max(high * 1.1, 1)]) : [0.1, 1];
    },
    draw(u, cells) {
      const accent = colour("--accent");
      for (const cell of cells) {
        const found = quantiles(cell);
        if (!found) continue;
        const [p25, p50, p75, p90, p99] = found.map((value) => u.valToPos(value, "y", true));
        box(u, cell, p90, p99, accent, 0.16);
        box(u, cell, p75, p90, accent, 0.3);
        box(u, cell, p25, p75, accent, 0.48);
        const ctx = u.ctx;
        ctx.fillStyle = colour("--ink");
        const [left, width] = across(u, cell);
        ctx.fillRect(left, p50 - devicePixelRatio, width, 2 * devicePixelRatio);
      }
    },
    tell(cell) {
      const found = quantiles(cell, [0.5, 0.9, 0.99]);
      return found ? found.map((value, at) => `p${[50, 90, 99][at]} ${format.amount(value, unit)}`).join("  ") : "nothing";
    },
  };
}

/**
 * @param {string} unit
 * @returns {Drawing}
 */
export function heat(unit) {
  return {
    ...bands(unit),
    title: "Heat map: each slot's values, darker where more are",
    extent: (cells) => spread(cells),
    draw(u, cells) {
      const accent = colour("--accent");
      const step = 4 * devicePixelRatio;
      const density = cells.map((cell) => {
        /** @type {Map<number, number>} */
        const rows = new Map();
        for (const [upper, count] of cell.bins ?? []) {
          const row = Math.floor(u.valToPos(upper, "y", true) / step);
          rows.set(row, (rows.get(row) ?? 0) + count / Math.max(cell.end - cell.start, 1));
        }
        return rows;
      });
      const most = Math.max(...density.flatMap((rows) => [...rows.values()]), 0);
      cells.forEach((cell, at) => {
        for (const [row, count] of density[at]) box(u, cell, row * step, (row + 1) * step, accent, 0.08 + 0.92 * Math.sqrt(count / most), 0);
      });
    },
  };
}

/**
 * @param {string} unit
 * @returns {Drawing}
 */
export function averages(unit) {
  return {
    title: "Average",
    unit,
    extent(cells) {
      const values = cells.filter((cell) => cell.count).map((cell) => cell.total / cell.count);
      const least = Math.min(...values, 0);
      return values.length ? [least, Math.max(...values, 0) * 1.08 || 1] : [0, 1];
    },
    draw(u, cells) {
      const ctx = u.ctx;
      ctx.fillStyle = colour("--accent");
      for (const cell of cells) {
        if (!cell.count) continue;
        const [left, width] = across(u, cell);
        ctx.fillRect(left, u.valToPos(cell.total / cell.count, "y", true) - devicePixelRatio, width, 2 * devicePixelRatio);
      }
    },
    tell: (cell) => (cell.count ? `${format.amount(cell.total / cell.count, unit)} on average` : "nothing"),
  };
}

/**
 * @param {Slot[]} cells
 * @returns {[number, number]}
 */
function spread(cells) {
  const lows = cells.filter((cell) => cell.count && cell.low !== undefined);
  if (!lows.length) return [0.1, 1];
  const low = Math.min(...lows.map((cell) => /** @type {number} */ (cell.low)));
  const high = Math.max(...lows.map((cell) => /** @type {number} */ (cell.high)));
  if (low > 0) return [low * 0.9, Math.max(high * 1.1, low * 1.5)];
  return [Math.min(low * 1.1, 0), Math.max(high * 1.1, 1)];
}

/**
 * Where a cell lies, left and width in canvas pixels, with a gap.
 * @param {any} u
 * @param {Slot} cell
 * @param {number} [gap]
 */
function across(u, cell, gap = devicePixelRatio) {
  const left = Math.max(u.valToPos(cell.start, "x", true), u.bbox.left);
  const right = Math.min(u.valToPos(cell.end, "x", true), u.bbox.left + u.bbox.width);
  const width = right - left;
  return [left, Math.max(width > 3 * gap ? width - gap : width, 1)];
}

/**
 * @param {any} u
 * @param {Slot} cell
 * @param {number} one
 * @param {number} other
 * @param {string} fill
 * @param {number} alpha
 * @param {number} [gap]
 */
function box(u, cell, one, other, fill, alpha, gap) {
  const [left, width] = across(u, cell, gap);
  if (left >= u.bbox.left + u.bbox.width || width <= 0) return;
  const ctx = u.ctx;
  ctx.globalAlpha = alpha;
  ctx.fillStyle = fill;
  ctx.fillRect(left, Math.min(one, other), width, Math.max(Math.abs(one - other), other === one ? 0 : 1));
  ctx.globalAlpha = 1;
}

/**
 * One chart. `chosen` is called with a range that was dragged over, null where all is wanted again.
 */
export class Chart {
  /**
   * @param {{drawing: Drawing, height: number, sync: string, chosen?: ((range: Range | null) => void) | null, small?: boolean}} options
   */
  constructor(options) {
    this.options = options;
    this.drawing = options.drawing;
    /** @type {Slot[]} */
    this.cells = [];
    /** @type {{cells: Slot[], colour: string, text: string}[]} */
    this.stacks = [];
    /** @type {Note[]} */
    this.notes = [];
    /** @type {Range} */
    this.range = { from: 0, to: 1 };
    this.told = h("output", { class: "told quiet", "aria-live": "off" });
    this.heading = h("h3", null, this.drawing.title);
    this.plot = h("div", { class: "plot", "aria-hidden": "true" });
    this.element = h("figure", { class: options.small ? "chart small" : "chart" }, h("figcaption", null, this.heading, this.told), this.plot);
    /** @type {any} */
    this.u = null;
    this.isLog = false;
    this.sized = new ResizeObserver(() => this.#size());
    this.sized.observe(this.plot);
    this.repaint = () => {
      this.u?.destroy();
      this.u = null;
      this.#make();
    };
    addEventListener("taba-theme", this.repaint);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.repaint);
  }

  end() {
    this.sized.disconnect();
    removeEventListener("taba-theme", this.repaint);
    this.scheme.removeEventListener("change", this.repaint);
    this.u?.destroy();
    this.u = null;
  }

  /** @param {Drawing} drawing */
  use(drawing) {
    if (drawing.title === this.drawing.title && drawing.unit === this.drawing.unit) return;
    this.drawing = drawing;
    say(this.heading, drawing.title);
    this.repaint();
  }

  /**
   * @param {Slot[]} cells
   * @param {Range} range
   * @param {Note[]} notes
   * @param {{cells: Slot[], colour: string, text: string}[]} [stacks]
   */
  set(cells, range, notes, stacks = []) {
    Object.assign(this, { cells, range, notes, stacks });
    if (this.u && this.isLog !== this.#isLog()) this.repaint(); // a logarithmic axis has no 0: uPlot would not come to an end
    else if (!this.u) this.#make();
    else this.u.setData(this.#points());
  }

  #isLog() {
    return Boolean(this.drawing.log) && this.drawing.extent(this.cells)[0] > 0;
  }

  #points() {
    return [this.cells.map((cell) => (cell.start + cell.end) / 2), this.cells.map(() => 0)];
  }

  #size() {
    const width = this.plot.clientWidth;
    if (width && this.u && Math.abs(width - this.u.width) > 1) this.u.setSize({ width, height: this.options.height });
    else if (width && !this.u && this.cells.length) this.#make();
  }

  #make() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const { small, height, sync } = this.options;
    const ink = colour("--quiet");
    const grid = { stroke: colour("--grid"), width: 1 };
    const font = `11px ${colour("--font")}`;
    const drawing = this.drawing;
    const all = (/** @type {any} */ _, /** @type {number[]} */ splits) => splits; // each of them is meant
    const isLog = (this.isLog = this.#isLog());
    const UPlot = /** @type {any} */ (window).uPlot;
    this.u = new UPlot(
      {
        width,
        height,
        pxAlign: 0,
        legend: { show: false },
        cursor: {
          y: false,
          points: { show: false },
          drag: { x: Boolean(this.options.chosen), y: false, setScale: false },
          sync: { key: sync, setSeries: false, scales: ["x", null] },
          focus: { prox: -1 },
        },
        scales: {
          x: { time: true, range: () => [this.range.from, this.range.to] },
          y: { distr: isLog ? 3 : 1, range: () => drawing.extent(this.cells) },
        },
        axes: [
          { stroke: ink, font, grid: { show: false }, ticks: { show: false }, size: small ? 18 : 24, gap: 2, space: small ? 60 : 80, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((at) => (this.range.to - this.range.from <= 1200 ? format.time(at) : format.shortTime(at))) },
          small ? { show: false } : { stroke: ink, font, ticks: { show: false }, size: 62, gap: 4, space: 32, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((at) => format.mark(at, drawing.unit)), ...(isLog ? { splits: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ low, /** @type {number} */ high) => splitsOf(low, high, drawing.unit), filter: all, grid: { ...grid, filter: all } } : { incrs: stepsOf(drawing.unit), grid }) },
        ],
        series: [{}, { show: true, paths: () => null, points: { show: false } }],
        hooks: {
          drawSeries: [(/** @type {any} */ u) => this.#draw(u)],
          setCursor: [(/** @type {any} */ u) => this.#tell(u)],
          setSelect: [
            (/** @type {any} */ u) => {
              if (u.select.width < 4 || !this.options.chosen) return;
              const from = u.posToVal(u.select.left, "x");
              const to = u.posToVal(u.select.left + u.select.width, "x");
              u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
              this.options.chosen({ from, to });
            },
          ],
        },
      },
      this.#points(),
      this.plot,
    );
    this.u.over.addEventListener("dblclick", () => this.options.chosen?.(null));
  }

  /** @param {any} u */
  #draw(u) {
    const ctx = u.ctx;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    this.drawing.draw(u, this.cells, this.stacks);
    ctx.strokeStyle = ctx.fillStyle = colour("--warn");
    ctx.lineWidth = devicePixelRatio;
    ctx.font = `${11 * devicePixelRatio}px ${colour("--font")}`;
    let row = 0;
    for (const note of this.notes) {
      if (note.time < this.range.from || note.time > this.range.to) continue;
      const x = u.valToPos(note.time, "x", true);
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, u.bbox.top);
      ctx.lineTo(x, u.bbox.top + u.bbox.height);
      ctx.stroke();
      if (!this.options.small) {
        const text = note.text.length > 40 ? `${note.text.slice(0, 39)}…` : note.text;
        const left = x + ctx.measureText(text).width + 8 * devicePixelRatio > u.bbox.left + u.bbox.width;
        ctx.textAlign = left ? "right" : "left";
        ctx.fillText(text, x + (left ? -4 : 4) * devicePixelRatio, u.bbox.top + (12 + 13 * (row++ % 3)) * devicePixelRatio);
      }
    }
    ctx.restore();
  }

  /** @param {any} u */
  #tell(u) {
    const at = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
    const cell = at === null ? null : this.cells.find((one) => one.start <= at && at < one.end);
    say(this.told, at === null ? "" : cell ? `${format.time(cell.start)} – ${format.time(cell.end)}: ${this.drawing.tell(cell)}` : `${format.time(at)}: nothing`);
  }
}

const [FEW, MORE, EACH] = [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]; // digits of which a logarithmic axis has a mark
const [MINUTE, HOUR, DAY] = [60, 3600, 86_400];

/**
 * Such multiples of the powers of ten, from small to large.
 * @param {number[]} digits
 * @param {number} [from]
 */
function tens(digits, from = -30) {
  return Array.from({ length: 31 - from }, (_, at) => at + from).flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
}

/**
 * What is round in a unit of time: below a minute tens are, and of days.
 * @param {number[]} digits
 * @param {number} below seconds to which they go
 * @param {number[]} minutes
 * @param {number[]} hours
 * @param {number} parts of a second
 */
function times(digits, below, minutes, hours, parts) {
  const seconds = [...tens(digits).filter((at) => at <= below), ...minutes.map((at) => at * MINUTE), ...hours.map((at) => at * HOUR), ...tens(digits, 0).map((at) => at * DAY)];
  return seconds.map((at) => Number((at * parts).toPrecision(12)));
}

/**
 * Steps between the marks of an even axis; null where powers of ten will do.
 * @param {string} unit
 */
export function stepsOf(unit) {
  const parts = format.partsOfSecond(unit);
  if (parts) return times(MORE, 20, [0.5, 1, 2, 5, 10, 20, 30], [1, 2, 3, 6, 12], parts);
  return format.isOfBytes(unit) ? Array.from({ length: 60 }, (_, power) => 2 ** power) : null;
}

/**
 * Where a logarithmic axis is marked: few marks of many powers, else more, or both ends where less than two round values lie between. uPlot's own do
 * not come to an end where an axis begins at 9.5 or more of a power below 1, such as 0.0096.
 * @param {number} low above 0
 * @param {number} high
 * @param {string} unit
 * @returns {number[]}
 */
export function splitsOf(low, high, unit) {
  const parts = format.partsOfSecond(unit);
  const powers = (/** @type {number} */ base) => Array.from({ length: 60 }, (_, power) => base ** power);
  const [few, more, each] = parts
    ? [times(FEW, 10, [1, 10], [1], parts), times(MORE, 20, [1, 2, 5, 10, 30], [1, 2, 6, 12], parts), times(EACH, 50, [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40], [1, 1.5, 2, 3, 4, 5, 6, 8, 12, 18], parts)]
    : format.isOfBytes(unit)
      ? [powers(16), powers(4), powers(2)]
      : [tens(FEW), tens(MORE), tens(EACH)];
  for (const marks of high >= 1000 * low ? [few, more, each] : [more, each]) {
    const within = marks.filter((at) => low <= at && at <= high);
    if (within.length > 1) return within;
  }
  return [low, high];
}
