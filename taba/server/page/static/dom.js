// Elements out of values. Whatever comes from a Server goes in as text: nothing here, or elsewhere in the page, makes markup of text.

/** @typedef {string | number | Node | null | undefined | false} Child */

/**
 * An element. Properties that begin with `on` are listeners, `class` and the like are attributes; false and null leave one out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any> | null} [properties]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "hidden" || name === "disabled") /** @type {any} */ (element)[name] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/**
 * @param {Node} parent
 * @param {(Child | Child[])[]} children
 */
function append(parent, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    parent.appendChild(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...Node} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * What tells a child from the others of its parent: its `data-key`; of what has none, which of its kind it is.
 * @param {Element} child
 */
function keyOf(child) {
  return /** @type {HTMLElement} */ (child).dataset?.["key"] ?? `\0${child.tagName}`;
}

/**
 * Those of a parent's children that have a key: one, unless none of them has `data-key`.
 * @param {Element} parent
 * @param {string} key
 */
function keyed(parent, key) {
  return [...parent.children].filter((child) => keyOf(child) === key);
}

/**
 * Replace what is in an element. Whatever had the focus in there, its successor has it: who goes by keys is not thrown out by what is live.
 * The successor is found by keys: where the row is gone, what is around it has the focus, never another row's button.
 * @param {Element} parent
 * @param {...(Child | Child[])} children
 */
export function fill(parent, ...children) {
  const focused = document.activeElement;
  /** @type {[string, number][]} */
  const path = [];
  if (focused && focused !== parent && parent.contains(focused)) {
    for (let at = focused; at !== parent && at.parentElement; at = at.parentElement) {
      const key = keyOf(at);
      path.unshift([key, keyed(at.parentElement, key).indexOf(at)]);
    }
  }
  parent.replaceChildren();
  append(parent, children);
  if (!focused || !path.length) return;
  let found = parent;
  /** @type {Element | null} */
  let around = null;
  for (const [key, place] of path) {
    const next = keyed(found, key)[place];
    if (!next) break;
    found = next;
    if (found instanceof HTMLElement && found.tabIndex >= 0) around = found;
  }
  if (around instanceof HTMLElement) around.focus({ preventScroll: true });
}

/**
 * Set a text only where it differs: a screen reader hears, and a browser lays out, what has changed alone.
 * @param {Node | null | undefined} node
 * @param {string} text
 */
export function say(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}

/**
 * A custom property: the only way in which styles are set from here, which the page's policy allows.
 * @param {HTMLElement | SVGElement} element
 * @param {string} name
 * @param {string} value
 */
export function style(element, name, value) {
  element.style.setProperty(name, value);
}

/**
 * A table with a head; cells that are numbers stand to the right.
 * @param {string} caption
 * @param {string[]} heads
 * @param {Child[][]} rows
 * @param {boolean[]} [numeric]
 * @param {string[]} [rowKeys] what tells the rows apart
 */
export function table(caption, heads, rows, numeric = [], rowKeys = []) {
  const cell = (/** @type {Child} */ content, /** @type {number} */ at) => h("td", { class: numeric[at] ? "number" : null }, content);
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      null,
      h("caption", { class: "unseen" }, caption),
      h("thead", null, h("tr", null, ...heads.map((head, at) => h("th", { scope: "col", class: numeric[at] ? "number" : null }, head)))),
      h("tbody", null, ...rows.map((row, at) => h("tr", { "data-key": rowKeys[at] }, ...row.map(cell)))),
    ),
  );
}

/**
 * Text to copy, with a button that does.
 * @param {string} label
 * @param {string} text
 */
export function copied(label, text) {
  const button = h(
    "button",
    {
      class: "small",
      "aria-label": `Copy ${label}`,
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          say(button, "Copied");
        } catch {
          say(button, "Select it and copy"); // a browser gives the clipboard on loopback and over TLS alone
        }
        setTimeout(() => say(button, "Copy"), 1500);
      },
    },
    "Copy",
  );
  return h("div", { class: "copied" }, h("span", { class: "quiet" }, label), h("code", { tabindex: 0 }, text), button);
}
