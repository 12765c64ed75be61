// What an Aggregate says in a few figures: by its shape, never by the name of its Type.

/** @typedef {{rate: number | null, count: number | null, p50: number | null, p99: number | null, value: number | null, text: string | null, ever: number | null}} Figures */

export const WINDOWS = /** @type {const} */ (["1m", "10m", "1h", "1d"]);
export const SECONDS = /** @type {Record<string, number>} */ ({ "1m": 60, "10m": 600, "1h": 3600, "1d": 86400 });
export const WORDS = /** @type {Record<string, string>} */ ({ "1m": "last minute", "10m": "last 10 minutes", "1h": "last hour", "1d": "last day" });

/**
 * @param {any} value
 * @returns {number | null}
 */
function finite(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/**
 * @param {any} aggregate
 * @returns {Figures}
 */
export function figuresOf(aggregate) {
  const minute = typeof aggregate?.["1m"] === "object" ? aggregate["1m"] : null; // somebody's own Type may mean anything by it
  const spread = minute && "p50" in minute && minute.count ? minute : (aggregate?.pct ?? aggregate?.["1h"] ?? aggregate);
  return {
    rate: minute ? (finite(minute.count) ?? 0) / 60 : null,
    count: finite(minute?.count ?? aggregate?.count),
    p50: finite(spread?.p50),
    p99: finite(spread?.p99),
    text: textOf(aggregate),
    ever: finite(aggregate?.pct?.count ?? aggregate?.["1d"]?.count ?? (typeof aggregate?.total === "number" ? aggregate.count : null)),
    value: finite(aggregate?.value ?? aggregate?.sum ?? aggregate?.distinct ?? (minute ? null : aggregate?.total)),
  };
}

/**
 * What an Aggregate says in a word: the most frequent value, the latest, what most Clients say.
 * @param {any} aggregate
 * @returns {string | null}
 */
function textOf(aggregate) {
  const shape = shapeOf(aggregate);
  if (shape === "top" && aggregate.top.length) return shortly(aggregate.top[0][0]);
  if (shape === "recent" && aggregate.values.length) return shortly(aggregate.values[aggregate.values.length - 1][1]);
  if (shape === "value" && typeof aggregate.value !== "number" && aggregate.value !== null) return shortly(aggregate.value);
  if (shape === "values" && finite(aggregate.sum) === null) {
    const all = /** @type {[string, number][]} */ (Object.entries(aggregate.values));
    if (all.length) return all.reduce((most, one) => (one[1] > most[1] ? one : most))[0];
  }
  return null;
}

/**
 * Whether these are lists of two and more: values with what belongs to each.
 * @param {any[]} all
 */
function arePairs(all) {
  return all.every((one) => Array.isArray(one) && one.length >= 2);
}

/** @param {any} value */
function shortly(value) {
  return (typeof value === "string" ? value : JSON.stringify(value)).slice(0, 200);
}

/**
 * The shape of an Aggregate or a Projection.
 * @param {any} aggregate
 * @returns {"windows" | "values" | "value" | "distinct" | "top" | "recent" | "spread" | "totals" | "empty" | "other"}
 */
export function shapeOf(aggregate) {
  if (!aggregate || typeof aggregate !== "object" || Array.isArray(aggregate)) return "other";
  if (WINDOWS.every((window) => aggregate[window] && typeof aggregate[window] === "object")) return "windows";
  if (Array.isArray(aggregate.top)) return arePairs(aggregate.top) ? "top" : "other";
  if (Array.isArray(aggregate.values)) return arePairs(aggregate.values) ? "recent" : "other";
  if (aggregate.values && typeof aggregate.values === "object" && "clients" in aggregate) return "values";
  if ("distinct" in aggregate) return "distinct";
  if ("p50" in aggregate && "count" in aggregate) return "spread";
  if ("count" in aggregate && "total" in aggregate) return "totals";
  if ("value" in aggregate) return "value";
  return Object.keys(aggregate).length ? "other" : "empty";
}

/**
 * All numbers in a Projection by their path: what a table per Client has as columns.
 * @param {any} projection
 * @returns {Record<string, number>}
 */
export function pathsOf(projection) {
  /** @type {Record<string, number>} */
  const found = Object.create(null); // somebody's own Type may have any names
  const walk = (/** @type {any} */ value, /** @type {string} */ path, /** @type {number} */ depth) => {
    if (typeof value === "number" && Number.isFinite(value)) found[path] = value;
    else if (value && typeof value === "object" && !Array.isArray(value) && depth < 3) for (const [key, inner] of Object.entries(value)) walk(inner, path ? `${path}.${key}` : key, depth + 1);
  };
  walk(projection, "", 0);
  return found;
}

/**
 * Of several numbers the one that stands out: farthest from the middle, by far more than the others usually are. Null where none does.
 * @param {(number | null)[]} values
 * @returns {{at: number, times: number} | null}
 */
export function outlier(values) {
  const known = values.filter((value) => value !== null);
  if (known.length < 3) return null;
  const middle = median(known);
  const spread = median(known.map((value) => Math.abs(value - middle)));
  const usual = 1.4826 * spread + 0.1 * Math.abs(middle);
  let found = null;
  let farthest = 4;
  values.forEach((value, at) => {
    if (value === null || !usual) return;
    const far = Math.abs(value - middle) / usual;
    if (far > farthest) {
      farthest = far;
      found = { at, times: middle ? value / middle : Infinity };
    }
  });
  return found;
}

/** @param {number[]} values */
export function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
