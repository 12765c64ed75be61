// Dead letters: what could not be folded, why, and what to do about it.

import { ask, get, mayChange, url } from "./api.js";
import { fill, h, say } from "./dom.js";
import * as format from "./format.js";
import { allowed, repeat } from "./live.js";
import { hash } from "./names.js";

const SHOWN = 200;
const SURE = 5000; // ms in which a second click gives up what the first asked about
const MOST_EVENTS = 50; // of one reason
const CURES = /** @type {Record<string, string>} */ ({
  unknown_type: "Install what has a Handler of this Type at every Server, start them again, and retry.",
  type_conflict: "Record this Tab with one Type everywhere; delete the Tab where the other one is meant.",
  newer_state: "Update the Servers: this State was written by a newer version of its Handler.",
  handler_error: "Mend the Handler or what is recorded; the detail has the last frame of the traceback.",
  unknown_edge: "Update the Servers: an Agent folded these events to a State of a version that they do not merge.",
  bad_value: "Mend what is recorded: its Type does not take this value.",
});

/**
 * How many events a row stands for: one, or those that were folded before they came.
 * @param {any} one
 */
function eventsOf(one) {
  return typeof one.events === "number" ? one.events : 1;
}

/** @param {any[]} rows */
function eventsIn(rows) {
  return rows.reduce((sum, one) => sum + eventsOf(one), 0);
}

/**
 * @param {HTMLElement} host
 * @returns {import("./view.js").View}
 */
export function letters(host) {
  const told = h("p", { role: "status", class: "quiet" });
  const retry = h("button", { class: "main", id: "retry", hidden: true, onclick: () => act("retry") }, "Retry all");
  const discard = h("button", { id: "discard", hidden: true, onclick: () => sure() }, "Discard all");
  const tools = h("div", { class: "tools" }, retry, discard, told);
  const body = h("div");
  fill(host, h("h1", null, "Dead letters"), tools, body);
  let isSure = false;
  let last = "";
  const surely = { id: "", button: /** @type {HTMLElement | null} */ (null), timer: 0 }; // the letter that is given up, if it is clicked again

  function sure() {
    if (isSure) {
      isSure = false;
      say(discard, "Discard all");
      void act("discard");
      return;
    }
    isSure = true;
    say(discard, "Discard them for ever?");
    setTimeout(() => {
      isSure = false;
      say(discard, "Discard all");
    }, SURE);
  }

  /** @param {string} kind */
  async function act(kind) {
    try {
      let job = await ask("POST", `/v1/${kind}`);
      while (job.state === "running") {
        say(told, `${kind}: ${format.count(job.done)} of ${format.count(job.total)} buckets …`);
        await new Promise((done) => setTimeout(done, 300));
        [job] = await get(url("/v1/jobs", { id: job.id }));
      }
      say(told, `${kind}: ${job.state}, ${job.message}`);
      await draw();
    } catch (error) {
      say(told, /** @type {Error} */ (error).message);
    }
  }

  /**
   * One letter alone.
   * @param {string} method
   * @param {string} id
   */
  async function actOn(method, id) {
    try {
      const done = await ask(method, url("/v1/dead-letters", { id }));
      say(told, method === "POST" ? (done.folded ? `${format.plural(done.folded, "event")} folded.` : "It still cannot be folded.") : `${format.plural(done.events, "event")} given up.`);
      await draw();
    } catch (error) {
      say(told, /** @type {Error} */ (error).message);
    }
  }

  /** Nobody is asked about one any more. */
  function unsure() {
    clearTimeout(surely.timer);
    if (surely.button) say(surely.button, "Discard");
    Object.assign(surely, { id: "", button: null });
  }

  /**
   * Buttons for the letter that an event stands in: one letter may have several.
   * @param {any} one
   * @param {number} many
   */
  function own(one, many) {
    const what = `${format.plural(many, "event")} of ${one.tab ?? one.reason}`;
    const click = () => {
      const isSure = surely.id === one.id;
      unsure();
      if (isSure) {
        void actOn("DELETE", one.id);
        return;
      }
      say(discard, "For ever?");
      Object.assign(surely, { id: one.id, button: discard, timer: setTimeout(unsure, SURE) });
    };
    const discard = h("button", { class: "small", "data-key": "discard", "aria-label": `Discard ${what}`, onclick: click }, surely.id === one.id ? "For ever?" : "Discard");
    if (surely.id === one.id) surely.button = discard; // drawn anew
    return h("span", { class: "tools" }, h("button", { class: "small", "data-key": "retry", "aria-label": `Retry ${what}`, onclick: () => actOn("POST", one.id) }, many > 1 ? `Retry these ${format.count(many)}` : "Retry"), discard);
  }

  async function draw() {
    const found = await get(url("/v1/dead-letters", { limit: SHOWN }));
    const may = mayChange();
    retry.hidden = discard.hidden = !may || !found.length;
    const mark = JSON.stringify([found, may]);
    if (mark === last) return; // so that nothing that is open is shut
    last = mark;
    /** @type {Map<string, any[]>} */
    const groups = new Map();
    for (const letter of found) {
      const key = `${letter.reason}\n${letter.type}\n${letter.detail}`;
      groups.set(key, [...(groups.get(key) ?? []), letter]);
    }
    /** @type {Map<string, number>} */
    const sizes = new Map();
    for (const one of found) sizes.set(one.id, (sizes.get(one.id) ?? 0) + eventsOf(one));
    /** @type {Set<string>} */
    const begun = new Set(); // letters whose first event has the buttons
    const first = (/** @type {string} */ id) => !begun.has(id) && Boolean(begun.add(id));
    const open = new Set([...body.querySelectorAll("details[open]")].map((one) => /** @type {HTMLElement} */ (one).dataset["key"]));
    fill(
      body,
      found.length ? null : h("p", { class: "empty good" }, "None: everything that came was folded."),
      ...[...groups].map(([key, of]) => {
        const [letter] = of;
        return h(
          "details",
          { class: "letter", "data-key": key, open: open.has(key) },
          h("summary", null, h("b", null, String(letter.reason).replace(/_/g, " ")), h("span", null, String(letter.detail).split("\n")[0]), h("span", { class: "quiet" }, `${format.plural(eventsIn(of), "event")}, the last at ${format.time(letter.refused)}`)),
          h("p", null, CURES[letter.reason] ?? "Mend what the detail says, then retry."),
          h("pre", { tabindex: 0, "aria-label": "Detail" }, String(letter.detail)),
          h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Events" }, h("table", null, h("thead", null, h("tr", null, ...["recorded", "Client", "Tab", "Type", "value", ...(may ? ["do"] : [])].map((head) => h("th", { scope: "col" }, head)))), h("tbody", null, ...of.slice(0, MOST_EVENTS).map((one) => h("tr", { "data-key": one.id }, h("td", null, one.time === null || one.time === undefined ? format.NONE : format.moment(one.time)), h("td", null, one.client === undefined ? format.NONE : h("a", { href: hash("client", String(one.client)) }, String(one.client))), h("td", null, one.tab === undefined ? format.NONE : h("a", { href: hash("tab", String(one.tab)) }, String(one.tab))), h("td", null, one.type === undefined ? format.NONE : String(one.type)), h("td", null, (JSON.stringify(one.value) ?? String(one.content ?? "")).slice(0, 300)), may ? h("td", null, first(one.id) ? own(one, sizes.get(one.id) ?? 1) : null) : null))))),
          of.length > MOST_EVENTS ? h("p", { class: "quiet" }, `and ${format.count(eventsIn(of.slice(MOST_EVENTS)))} more`) : null,
        );
      }),
      found.length === SHOWN ? h("p", { class: "quiet" }, `The newest ${SHOWN}; taba dead-letters has more.`) : null,
    );
  }
  const ends = [repeat(() => allowed(body, draw), 3000)];
  return { title: "Dead letters", keys: { r: ["retry all", () => mayChange() && act("retry")] }, end: () => ends.forEach((end) => end()) };
}
