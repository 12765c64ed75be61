// Numbers, times and names as a person reads them: in the reader's own number format and time zone.

const locale = navigator.language || "en";
/** @type {Map<number, Intl.NumberFormat>} */
const fixed = new Map();
const whole = new Intl.NumberFormat(locale, { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minute = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "medium" });
export const NONE = "–";

/**
 * @param {number} value
 * @param {number} digits
 */
function withDigits(value, digits) {
  let format = fixed.get(digits);
  if (!format) fixed.set(digits, (format = new Intl.NumberFormat(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits })));
  return format.format(value);
}

/**
 * Three digits that count: 0.00312, 1.24, 12.4, 124, 1,240, 12.4 k.
 * @param {number | null | undefined} value
 * @returns {string}
 */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e15) return value.toExponential(2);
  if (size >= 1e5) {
    const step = size >= 1e12 ? 4 : size >= 1e9 ? 3 : size >= 1e6 ? 2 : 1;
    return `${three(value / 1000 ** step)} ${" kMGT"[step]}`;
  }
  return three(value);
}

/** @param {number} value */
function three(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return whole.format(value);
  if (size >= 100) return withDigits(value, 0);
  if (size >= 10) return withDigits(value, 1);
  if (size >= 1) return withDigits(value, 2);
  if (size >= 0.001) return withDigits(value, 2 - Math.floor(Math.log10(size)) - 1 + 1);
  return value.toExponential(1);
}

/**
 * A whole number in full.
 * @param {number | null | undefined} value
 */
export function count(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? NONE : Number.isInteger(value) ? whole.format(value) : number(value);
}

const SECONDS = /** @type {[number, string][]} */ ([[86400, "d"], [3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]);
const BYTES = /** @type {[number, string][]} */ ([[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"], [1, "B"]]);

/** What a unit is of, and how many of it one second or one byte is. */
const UNITS = /** @type {Record<string, {steps: [number, string][], parts: number}>} */ ({
  ...Object.fromEntries([["s", 1], ["seconds", 1], ["ms", 1e3], ["milliseconds", 1e3], ["us", 1e6], ["\u00b5s", 1e6], ["\u03bcs", 1e6], ["microseconds", 1e6], ["ns", 1e9], ["nanoseconds", 1e9]].map(([unit, parts]) => [unit, { steps: SECONDS, parts }])),
  ...Object.fromEntries(["By", "B", "bytes"].map((unit) => [unit, { steps: BYTES, parts: 1 }])),
});

/** @param {string | null | undefined} unit */
function known(unit) {
  return unit && Object.hasOwn(UNITS, unit) ? UNITS[unit] : null;
}

/**
 * How many of it one second is, where a unit is of time.
 * @param {string} unit
 */
export function partsOfSecond(unit) {
  const found = known(unit);
  return found?.steps === SECONDS ? found.parts : null;
}

/** @param {string} unit */
export function isOfBytes(unit) {
  return known(unit)?.steps === BYTES;
}

/**
 * A value in its unit, each at the size that reads best.
 * @param {number | null | undefined} value
 * @param {string | null | undefined} unit
 */
export function amount(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const found = known(unit);
  if (found) return scaled(value / found.parts, found.steps);
  if (unit === "ratio") return percent(value);
  if (unit === "%" || unit === "percent") return `${number(value)} %`;
  return unit && unit !== "1" ? `${number(value)} ${unit}` : number(value);
}

/**
 * A mark of an axis: a time in the largest size in which it is whole, so 90 min and not 1.50 h.
 * @param {number} value
 * @param {string} unit
 */
export function mark(value, unit) {
  const parts = partsOfSecond(unit);
  if (!parts) return amount(value, unit);
  const seconds = value / parts;
  return scaled(seconds, SECONDS.filter(([size]) => size <= 1 || Number.isInteger(Number((seconds / size).toPrecision(12)))));
}

/**
 * @param {number} value
 * @param {[number, string][]} steps
 */
function scaled(value, steps) {
  const last = steps[steps.length - 1];
  if (value === 0) return `0 ${last[1] === "B" ? "B" : "s"}`;
  const [size, name] = steps.find(([least]) => Math.abs(value) >= least) ?? last;
  return `${three(value / size)} ${name}`;
}

/** @param {number | null | undefined} share */
export function percent(share) {
  if (share === null || share === undefined || !Number.isFinite(share)) return NONE;
  const value = share * 100;
  return `${Math.abs(value) >= 10 ? whole.format(value) : withDigits(value, 1)} %`;
}

/**
 * How much more or less: ▲ 12 %, ▼ 40 %, ▲ 8 ×.
 * @param {number | null} now
 * @param {number | null} then
 * @returns {{text: string, word: string, direction: number}}
 */
export function change(now, then) {
  if (now === null || then === null || (!now && !then)) return { text: "", word: "", direction: 0 };
  if (!then) return { text: "new", word: "new within the hour", direction: 1 };
  const share = now / then - 1;
  if (Math.abs(share) < 0.02) return { text: "=", word: "as an hour ago", direction: 0 };
  const up = share > 0;
  const much = now / then >= 3 ? `${number(Math.round((now / then) * 10) / 10)} ×` : percent(Math.abs(share));
  return { text: `${up ? "▲" : "▼"} ${much}`, word: `${much} ${up ? (now / then >= 3 ? "of" : "more than") : "less than"} an hour ago`, direction: up ? 1 : -1 };
}

/**
 * A moment, exact to the second.
 * @param {number} seconds
 */
export function time(seconds) {
  return clock.format(seconds * 1000);
}

/** @param {number} seconds */
export function shortTime(seconds) {
  return minute.format(seconds * 1000);
}

/** @param {number} seconds */
export function moment(seconds) {
  return day.format(seconds * 1000);
}

/**
 * How long: 4 s, 12 min, 3 h, 2 d.
 * @param {number} seconds
 */
export function lasting(seconds) {
  const value = Math.max(0, seconds);
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

/**
 * @param {number} many
 * @param {string} one
 * @param {string} [more]
 */
export function plural(many, one, more = `${one}s`) {
  return `${whole.format(many)} ${many === 1 ? one : more}`;
}
