// A list of any length of which only what can be seen is there: rows outside the window cost nothing.

import { h, style } from "./dom.js";

const ROW = 34; // px of a row …
const TALL_ROW = 54; // … and of one in two lines, where a line has no room for all of it
const NARROW = "(max-width: 700px)";
const SPARE = 4; // rows beyond either edge, so that a turn of the wheel shows no hole

/**
 * @template T
 */
export class WindowedList {
  /**
   * @param {{
   *   label: string,
   *   key: (item: T) => string,
   *   make: () => HTMLElement,
   *   show: (row: HTMLElement, item: T, at: number) => void,
   *   open: (item: T) => void,
   *   seen: (items: T[]) => void,
   * }} options
   */
  constructor(options) {
    this.options = options;
    /** @type {T[]} */
    this.items = [];
    this.first = 0;
    this.selected = -1;
    /** @type {HTMLElement[]} */
    this.rows = [];
    this.space = h("div", { class: "space", role: "rowgroup" });
    this.element = h("div", { class: "list", role: "grid", "aria-label": options.label, tabindex: 0 }, this.space);
    this.element.addEventListener("scroll", () => this.draw(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.narrow = matchMedia(NARROW);
    this.rowHeight = ROW;
    this.measured = () => {
      this.#measure();
      this.draw(true);
    };
    this.narrow.addEventListener("change", this.measured);
    this.resized = new ResizeObserver(() => {
      // heads stand above the list, which may have a bar beside its rows
      style(document.documentElement, "--bar", `${this.element.offsetWidth - this.element.clientWidth - 2}px`);
      this.draw();
    });
    this.resized.observe(this.element);
    this.#measure();
  }

  /**
   * What is chosen, and what has the focus, stays that item's, wherever it comes to stand.
   * @param {T[]} items
   */
  set(items) {
    const { key } = this.options;
    const before = this.selected >= 0 ? key(this.items[this.selected]) : null;
    this.items = items;
    this.selected = before === null ? -1 : items.findIndex((item) => key(item) === before);
    if (this.selected < 0) this.element.removeAttribute("aria-activedescendant");
    else this.element.setAttribute("aria-activedescendant", `row-${this.selected}`);
    this.element.setAttribute("aria-rowcount", String(items.length));
    this.#measure();
    this.draw(true);
  }

  #measure() {
    this.rowHeight = this.narrow.matches ? TALL_ROW : ROW;
    style(this.element, "--row", `${this.rowHeight}px`);
    style(this.space, "height", `${this.items.length * this.rowHeight}px`);
  }

  end() {
    this.resized.disconnect();
    this.narrow.removeEventListener("change", this.measured);
  }

  /** Draw what can be seen. */
  draw(again = false) {
    const { rowHeight } = this;
    const top = this.element.scrollTop;
    const visible = Math.ceil((this.element.clientHeight || 600) / rowHeight);
    const first = Math.max(0, Math.min(Math.floor(top / rowHeight) - SPARE, this.items.length - 1));
    const last = Math.min(this.items.length, first + visible + 2 * SPARE);
    const needed = Math.max(0, last - first);
    if (!again && first === this.first && needed === this.rows.length) return;
    this.first = first;
    while (this.rows.length > needed) {
      const row = this.rows.pop();
      if (row?.contains(document.activeElement)) this.element.focus({ preventScroll: true });
      row?.remove();
    }
    while (this.rows.length < needed) {
      const row = this.options.make();
      row.setAttribute("role", "row");
      for (const cell of row.children) cell.setAttribute("role", "gridcell");
      row.addEventListener("click", (event) => {
        if (event.target instanceof Element && event.target.closest("button, a")) return;
        this.select(Number(row.dataset["at"]), false);
        this.options.open(this.items[this.selected]);
      });
      this.rows.push(row);
      this.space.append(row);
    }
    this.rows.forEach((row, offset) => this.#place(row, first + offset));
    const inside = this.items.slice(Math.max(0, Math.floor(top / rowHeight)), Math.ceil(top / rowHeight) + visible);
    this.options.seen(inside);
  }

  /** Show the rows that are there anew: what they show has changed. */
  refresh() {
    this.rows.forEach((row, offset) => {
      const item = this.items[this.first + offset];
      if (item !== undefined) this.options.show(row, item, this.first + offset);
    });
  }

  /**
   * @param {HTMLElement} row
   * @param {number} at
   */
  #place(row, at) {
    const item = this.items[at];
    const key = this.options.key(item);
    // a row that has the focus inside becomes another item's: the list has it, not that one's button
    if (row.dataset["key"] !== key && row.contains(document.activeElement)) this.element.focus({ preventScroll: true });
    row.dataset["key"] = key;
    row.dataset["at"] = String(at);
    row.id = `row-${at}`;
    style(row, "transform", `translateY(${at * this.rowHeight}px)`);
    row.setAttribute("aria-rowindex", String(at + 1));
    row.setAttribute("aria-selected", String(at === this.selected));
    this.options.show(row, item, at);
  }

  /**
   * @param {number} at
   * @param {boolean} [scroll]
   */
  select(at, scroll = true) {
    if (!this.items.length) return;
    this.selected = Math.max(0, Math.min(at, this.items.length - 1));
    if (scroll) {
      const top = this.selected * this.rowHeight;
      const { scrollTop, clientHeight } = this.element;
      if (top < scrollTop) this.element.scrollTop = top;
      else if (top + this.rowHeight > scrollTop + clientHeight) this.element.scrollTop = top + this.rowHeight - clientHeight;
    }
    this.element.setAttribute("aria-activedescendant", `row-${this.selected}`);
    this.draw(true);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    /** @type {Record<string, number>} */
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) this.select(this.selected < 0 ? 0 : this.selected + steps[event.key]);
    else if ((event.key === "Enter" || event.key === "ArrowRight") && this.items[this.selected] !== undefined) this.options.open(this.items[this.selected]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
