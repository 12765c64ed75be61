// The system in one line: events a second, freshness, Clients that live, what is wrong in words.

import { get, state } from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";
import { note } from "./life.js";
import { repeat } from "./live.js";
import { clientParts } from "./names.js";

const EVERY = 2000; // ms

/** What the status said last, for views that show more of it. */
export const status = { last: /** @type {any} */ (null), at: 0 };

/** @param {HTMLElement} host */
export function systemLine(host) {
  const rate = h("b");
  const fresh = h("b");
  const alive = h("b");
  const agents = h("b");
  const problems = h("a", { href: "#/system", class: "problems" });
  host.replaceChildren(
    h("span", null, rate, " events/s"),
    h("span", { title: "from record to visible, at p99" }, "fresh within ", fresh),
    h("span", null, alive),
    h("span", null, agents),
    h("span", null, problems),
  );
  host.hidden = true;
  /** @type {{folded: number, at: number}[]} */
  let counts = [];

  repeat(async () => {
    if (state.who === null || state.who.kind === null) return;
    /** @type {[any, any]} */
    const [said, living] = await Promise.all([get("/v1/status"), state.who.bound ? {} : get("/v1/projections?name=taba.alive")]);
    status.last = said;
    status.at = Date.now();
    host.hidden = false;
    counts.push({ folded: said.folded, at: performance.now() });
    counts = counts.slice(-6); // some 10 s: drains come in bursts
    const first = counts[0];
    const last = counts[counts.length - 1];
    say(rate, last.at > first.at ? format.number(Math.round(Math.max(0, (last.folded - first.folded) / ((last.at - first.at) / 1000)))) : "…");
    const p99 = said.latency?.p99;
    say(fresh, p99 === null || p99 === undefined ? format.NONE : format.amount(p99, "s"));
    /** @type {Record<string, any>} */
    const lives = living["taba.alive"] ?? {};
    note(lives, Date.now() / 1000);
    const all = Object.entries(lives);
    const alives = all.filter(([, projection]) => projection?.value);
    say(alive, `${format.plural(alives.length, "Client")} alive`);
    const hosts = new Set(alives.map(([client]) => clientParts(client).host));
    say(agents, hosts.size > 1 ? `on ${format.plural(hosts.size, "host")}` : "");
    const wrong = said.problems.length;
    say(problems, wrong ? `${format.plural(wrong, "problem")}: ${said.problems[0]}` : "nothing needs you");
    problems.classList.toggle("bad", wrong > 0);
    problems.title = said.problems.join("\n");
  }, EVERY);
}
