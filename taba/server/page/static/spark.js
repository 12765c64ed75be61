// A sparkline: events in each of the last 60 minutes, as an area; what nobody knows is left out.

import { svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 24;

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
