// Who: a Tab by Client, sortable, with the one that stands out marked.

import { fill, h, style } from "./dom.js";
import { outlier, pathsOf } from "./figures.js";
import * as format from "./format.js";
import { hash } from "./names.js";

const MOST_ROWS = 200; // shown at once; the others when they are asked for
const PREFERRED = ["1m.count", "1m.average", "1m.p50", "1m.p99", "1m.worst p99", "1h.count", "1h.average", "1h.p50", "1h.p99", "1h.worst p99", "count", "total", "average", "p50", "p99", "max", "value", "distinct"];
const WORDS = /** @type {Record<string, string>} */ ({ "1m": "1 min", "1h": "1 h", "10m": "10 min", "1d": "1 d" });

export class Who {
  constructor() {
    this.element = h("section", { class: "who", "aria-label": "Who" });
    this.sort = "";
    this.isDown = true;
    this.isWhole = false;
    /** @type {Record<string, any>} */
    this.projections = {};
    /** @type {string | null} */
    this.unit = null;
  }

  /**
   * @param {Record<string, any>} projections by Client
   * @param {string | null} unit
   */
  set(projections, unit) {
    Object.assign(this, { projections, unit });
    this.draw();
  }

  draw() {
    const clients = Object.keys(this.projections);
    const flat = clients.map((client) => pathsOf(this.projections[client]));
    const there = new Set(flat.flatMap((paths) => Object.keys(paths)));
    let columns = PREFERRED.filter((path) => there.has(path));
    if (!columns.length) columns = [...there].filter((path) => path !== "time").slice(0, 8);
    const texts = clients.some((client) => typeof this.projections[client]?.value === "string" || Array.isArray(this.projections[client]?.top) || Array.isArray(this.projections[client]?.values));
    const marks = new Map(columns.map((path) => [path, outlier(flat.map((paths) => paths[path] ?? null))]));
    // the one that stands out: by what is a ratio first, such as p99, for how much a Client has to do is its own business
    const order = [...columns].sort((one, other) => Number(/count|total/.test(one)) - Number(/count|total/.test(other)));
    const strongest = order.find((path) => marks.get(path));
    const found = strongest ? /** @type {{at: number, times: number}} */ (marks.get(strongest)) : null;
    const sort = columns.includes(this.sort) ? this.sort : (strongest ?? columns[0] ?? "");
    const rows = clients.map((client, at) => ({ client, at, value: flat[at][sort] ?? null }));
    rows.sort((one, other) => (this.sort === "client" ? 0 : (this.isDown ? -1 : 1) * ((one.value ?? -Infinity) - (other.value ?? -Infinity))) || (one.client < other.client ? -1 : 1) * (this.sort === "client" && this.isDown ? -1 : 1));
    const most = Math.max(...flat.map((paths) => paths[sort] ?? 0), 0) || 1;
    const shown = this.isWhole ? rows : rows.slice(0, MOST_ROWS);
    const scrolled = this.element.querySelector(".scroll")?.scrollTop ?? 0;
    fill(
      this.element,
      h("h2", { id: "who" }, "Who", h("span", { class: "quiet" }, format.plural(clients.length, "Client"))),
      found && strongest
        ? h("p", { class: "outlier" }, h("b", null, "Stands out: "), h("a", { href: hash("client", clients[found.at]) }, clients[found.at]), ` with ${named(strongest)} of ${this.#amount(strongest, flat[found.at][strongest])}${Number.isFinite(found.times) && found.times > 0 ? `, ${format.number(found.times)} × the usual` : ""}.`)
        : null,
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "By Client" },
        h(
          "table",
          null,
          h("caption", { class: "unseen" }, "By Client"),
          h("thead", null, h("tr", null, this.#head("client", "Client", sort), ...columns.map((path) => this.#head(path, named(path), sort)), texts ? h("th", { scope: "col" }, "says") : null)),
          h(
            "tbody",
            null,
            ...shown.map(({ client, at }) =>
              h(
                "tr",
                { class: found?.at === at ? "marked" : null, "data-key": client },
                h("th", { scope: "row" }, h("a", { href: hash("client", client) }, client)),
                ...columns.map((path) => {
                  const cell = h("td", { class: `number${marks.get(path)?.at === at ? " out" : ""}${path === sort ? " sorted" : ""}` }, flat[at][path] === undefined ? format.NONE : this.#amount(path, flat[at][path]));
                  if (path === sort) style(cell, "--share", String(Math.max(0, flat[at][path] ?? 0) / most));
                  return cell;
                }),
                texts ? h("td", null, says(this.projections[client])) : null,
              ),
            ),
          ),
        ),
      ),
      rows.length > shown.length ? h("button", { onclick: () => ((this.isWhole = true), this.draw()) }, `All ${format.count(rows.length)}`) : null,
    );
    const scroll = this.element.querySelector(".scroll");
    if (scroll) scroll.scrollTop = scrolled;
  }

  /**
   * @param {string} path
   * @param {string} text
   * @param {string} sort
   */
  #head(path, text, sort) {
    const isSorted = path === (this.sort === "client" ? "client" : sort);
    const click = () => {
      this.isDown = isSorted ? !this.isDown : path !== "client";
      this.sort = path;
      this.draw();
    };
    return h("th", { scope: "col", "data-key": path, class: path === "client" ? null : "number", "aria-sort": isSorted ? (this.isDown ? "descending" : "ascending") : null }, h("button", { class: "sort", "data-sort": path, onclick: click }, text, isSorted ? (this.isDown ? " ↓" : " ↑") : ""));
  }

  /**
   * @param {string} path
   * @param {number} value
   */
  #amount(path, value) {
    return /count$/.test(path) ? format.count(value) : /distinct$/.test(path) ? format.count(Math.round(value)) : format.amount(value, this.unit);
  }
}

/** @param {string} path */
function named(path) {
  const [window, ...rest] = path.split(".");
  return rest.length && WORDS[window] ? `${rest.join(".")}, ${WORDS[window]}` : path;
}

/** @param {any} projection */
function says(projection) {
  if (typeof projection?.value === "string") return projection.value;
  const list = projection?.top ?? projection?.values;
  if (!Array.isArray(list)) return "";
  const text = list.slice(0, 3).map((one) => (Array.isArray(one) ? (projection.top ? one[0] : one[1]) : one));
  return text.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join(", ").slice(0, 120);
}
