// The page: its head, which view is shown, the keys, what is away, who one is.

import * as api from "./api.js";
import { boards } from "./boards.js";
import { client } from "./client.js";
import { clients, processes } from "./clients.js";
import { h, fill, say } from "./dom.js";
import { home } from "./home.js";
import { letters } from "./letters.js";
import * as live from "./live.js";
import { loginView } from "./login.js";
import { systemLine } from "./line.js";
import { system } from "./system.js";
import { tab } from "./tab.js";

/** @typedef {import("./view.js").View} View */

/** @type {Record<string, [string, string, (host: HTMLElement, what: string) => View]>} */
const VIEWS = {
  "": ["Tabs", "h", home],
  board: ["Boards", "b", boards],
  clients: ["Clients", "c", clients],
  processes: ["Processes", "m", processes],
  system: ["System", "y", system],
  letters: ["Dead letters", "d", letters],
};
const INNER = /** @type {Record<string, (host: HTMLElement, what: string) => View>} */ ({ tab, client });
const THEMES = ["auto", "light", "dark"];

const top = /** @type {HTMLElement} */ (document.getElementById("top"));
const main = /** @type {HTMLElement} */ (document.getElementById("view"));
const banner = /** @type {HTMLElement} */ (document.getElementById("banner"));
/** @type {View | null} */
let view = null;
let shown = "\0";

/** Which view the address names, and of what. */
function place() {
  const [, name = "", what = ""] = /^#\/([a-z]*)(?:\/(.*))?$/s.exec(location.hash) ?? [];
  try {
    return { name, what: decodeURIComponent(what) };
  } catch {
    return { name, what };
  }
}

function show() {
  const isStranger = api.state.who?.kind === null;
  const { name, what } = place();
  const wanted = isStranger ? "\0login" : `${name}/${what}`;
  if (wanted === shown) return;
  shown = wanted;
  view?.end();
  live.listener(); // a view that hears nothing takes nobody's ear
  main.replaceChildren();
  main.className = isStranger ? "login" : name || "home";
  const make = isStranger ? loginView : Object.hasOwn(VIEWS, name) ? VIEWS[name][2] : Object.hasOwn(INNER, name) ? INNER[name] : home;
  view = make(main, what);
  document.title = view.title ? `${view.title} · Taba` : "Taba";
  for (const link of top.querySelectorAll("nav a")) {
    const isHere = link.getAttribute("href") === `#/${name}` || (name === "tab" && link.getAttribute("href") === "#/") || (name === "client" && link.getAttribute("href") === "#/clients");
    if (isHere) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "center" }); // a phone has no room for all of them
    } else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
}

// --- head ---

const line = h("p", { id: "line" });
const theme = h("button", { class: "plain", onclick: () => nextTheme(), "aria-label": "Light, dark, or as the system" }, "◐");
const who = h("button", { class: "plain", hidden: true, onclick: () => void api.logout().then(() => location.reload()) });
fill(
  top,
  h("a", { class: "brand", href: "#/", "aria-label": "Taba, home" }, h("img", { src: "/page/icon.svg", alt: "", width: 20, height: 20 }), "Taba"),
  h("nav", { "aria-label": "Views" }, ...Object.entries(VIEWS).map(([name, [text]]) => h("a", { href: `#/${name}` }, text))),
  line,
  h("div", { class: "corner" }, who, theme, h("button", { class: "plain", onclick: () => help(), "aria-label": "Keys" }, "?")),
);

/** @param {string} [wanted] */
function nextTheme(wanted) {
  const now = wanted ?? THEMES[(THEMES.indexOf(document.documentElement.dataset["theme"] ?? "auto") + 1) % THEMES.length];
  document.documentElement.dataset["theme"] = now;
  try {
    localStorage.setItem("taba.theme", now);
  } catch {
    // a browser that keeps nothing: as the system has it
  }
  dispatchEvent(new Event("taba-theme"));
}
try {
  document.documentElement.dataset["theme"] = localStorage.getItem("taba.theme") ?? "auto";
} catch {
  document.documentElement.dataset["theme"] = "auto";
}

function tellAway() {
  const text = api.state.away ?? live.away() ?? (api.state.left ? `Some cannot be reached: ${api.state.left}` : null);
  banner.hidden = !text;
  document.documentElement.classList.toggle("away", Boolean(text));
  say(banner, text ? `${text} What is shown is as it was; this page goes on asking.` : "");
  const { who: me } = api.state;
  who.hidden = !me?.tokens || me.kind === null;
  say(who, me?.kind ? `${me.kind} · log out` : "");
}
api.watch(tellAway);
api.watch(show);
live.watch(tellAway);

// --- keys ---

/** @type {Record<string, [string, () => void]>} */
const KEYS = {
  ...Object.fromEntries(Object.entries(VIEWS).map(([name, [text, key]]) => [key, [text, () => (location.hash = `#/${name}`)]])),
  "/": ["search", () => ((location.hash = "#/"), setTimeout(() => document.getElementById("search")?.focus()))],
  f: ["full screen", () => void (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen())],
  t: ["light, dark, or as the system", () => nextTheme()],
  "?": ["these keys", () => help()],
  Escape: ["back", () => back()],
};

function back() {
  if (place().name) history.back();
}

const dialog = h("dialog", { "aria-labelledby": "keys-head" });
document.body.append(dialog);

function help() {
  if (dialog.open) return dialog.close();
  const rows = (/** @type {Record<string, [string, () => void]>} */ keys) => Object.entries(keys).map(([key, [text]]) => h("tr", null, h("th", { scope: "row" }, h("kbd", null, key === "Escape" ? "Esc" : key)), h("td", null, text)));
  fill(
    dialog,
    h("h2", { id: "keys-head" }, "Keys"),
    h("div", { class: "columns" }, h("table", null, h("caption", null, "Here"), h("tbody", null, ...rows(view?.keys ?? {}), ...rows({ "↑ ↓ Enter": ["choose and open, in lists", () => {}] }))), h("table", null, h("caption", null, "Everywhere"), h("tbody", null, ...rows(KEYS)))),
    h("button", { onclick: () => dialog.close() }, "Close"),
  );
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || dialog.open) return;
  const target = event.target instanceof Element ? event.target : null;
  if (target?.matches("input, select, textarea")) {
    if (event.key === "Escape") {
      /** @type {HTMLElement} */ (target).blur();
      event.preventDefault();
    }
    return;
  }
  const doing = view?.keys[event.key] ?? KEYS[event.key];
  if (!doing) return;
  event.preventDefault();
  doing[1]();
});

addEventListener("hashchange", show);
tellAway();
void api
  .whoAmI()
  .catch(() => {}) // it is away: the banner says so, and what is asked next tells when it is back
  .then(() => {
    systemLine(line);
    show();
  });
