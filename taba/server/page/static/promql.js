// What a Tab is asked for elsewhere: PromQL and curl, to copy. The names are made as the Server makes them.

import { parse } from "./names.js";

/**
 * @param {string} name
 * @param {string | null} unit
 * @param {boolean} isCounter
 */
function stem(name, unit, isCounter) {
  let found = isCounter ? name.replace(/_total$/, "") : name;
  const word = unit && unit !== "1" ? unit.replace(/[^A-Za-z0-9_]+/g, "_").replace(/^_+|_+$/g, "") : "";
  if (word && !found.endsWith(`_${word}`) && found !== word) found += `_${word}`;
  found = found.replace(/[^A-Za-z0-9_:]/g, "_");
  return /^[0-9]/.test(found) ? `_${found}` : found;
}

/**
 * Expressions that show a Tab over time.
 * @param {string} name
 * @param {string | null} unit
 * @param {any} aggregate
 * @param {string} shape
 * @returns {string[]}
 */
export function promql(name, unit, aggregate, shape) {
  const { base, labels } = parse(name);
  const inside = labels.map(([key, value]) => `${key}="${value.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n")}"`).join(",");
  const matchers = inside ? `{${inside}}` : "";
  if (shape === "windows" && !aggregate.pct && "p50" in aggregate["1m"]) {
    const series = `${stem(base, unit, false)}_bucket${matchers}`;
    return [`histogram_quantile(0.99, sum by (le) (rate(${series}[5m])))`, `sum(rate(${series.replace(`_bucket${matchers}`, `_count${matchers}`)}[5m]))`];
  }
  if (shape === "windows" || shape === "totals") return [`sum(rate(${stem(base, unit, true)}_total${matchers}[5m]))`];
  if (shape === "spread") return [`histogram_quantile(0.99, sum by (le) (${stem(base, unit, false)}_bucket${matchers}))`];
  if (shape === "distinct") return [`${stem(base, null, false)}_distinct${matchers}`];
  if (shape === "top") return [`topk(10, ${stem(base, null, false)}_top${matchers})`];
  if (shape === "value" || shape === "values") return [`${stem(base, unit, false)}${matchers}`];
  return [];
}

/** @param {string} path */
export function curl(path) {
  return `curl -fsS '${location.origin}${path.replace(/'/g, "%27")}'`;
}
