// The system in one line: events a second, freshness, Clients that live, what is wrong in words.

import { Failed, get, state, url, whoAmI } from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";
import { TOLD, isLookedAt, lives, note, whenLookedAt } from "./life.js";
import { pause, repeat, trying } from "./live.js";
import { clientParts } from "./names.js";

const EVERY = 2000; // ms
const TITLED = 20; // problems that the line's title has
const SELDOM = 30_000; // ms between two questions of who lives, one by one, while no view shows it

/** What the status said last, for views that show more of it; its problems are the Agents', too. */
export const status = { last: /** @type {any} */ (null), at: 0 };

/** Ask for it. Raises Failed. */
export async function askStatus() {
  /** @type {[any, any]} */
  const [said, agents] = await Promise.all([get("/v1/status"), state.who?.bound ? null : get("/v1/projections?name=taba.problems").catch(unanswered)]);
  const told = agents?.["taba.problems"] ?? {};
  for (const [agent, projection] of Object.entries(told)) {
    if (!Array.isArray(projection?.value)) continue; // nothing was heard of it lately, or its shard is away
    said.problems.push(...projection.value.map((/** @type {any} */ problem) => `${agent}: ${problem}`));
  }
  status.last = said;
  status.at = Date.now();
  return said;
}

/**
 * What cannot be told now: the store is away, say, and the status says why.
 * @param {any} failure
 */
function unanswered(failure) {
  if (!(failure instanceof Failed)) throw failure;
  return null;
}

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
    if (state.who === null) await whoAmI(); // nobody answered when the page began
    if (state.who === null || state.who.kind === null) return;
    /** @type {[any, any]} */
    const [said, living] = await Promise.all([askStatus(), state.who.bound ? null : get("/v1/aggregates?name=taba.alive").catch(unanswered)]);
    host.hidden = false;
    counts.push({ folded: said.folded, at: performance.now() });
    counts = counts.slice(-6); // some 10 s: drains come in bursts
    const first = counts[0];
    const last = counts[counts.length - 1];
    say(rate, last.at > first.at ? format.number(Math.round(Math.max(0, (last.folded - first.folded) / ((last.at - first.at) / 1000)))) : "…");
    const p99 = said.latency?.p99;
    say(fresh, p99 === null || p99 === undefined ? format.NONE : format.amount(p99, "s"));
    const found = living?.["taba.alive"];
    say(alive, !living || found?.error || (!found && state.left) ? "" : `${format.plural(found?.sum ?? 0, "Client")} alive`); // each says 1
    const hosts = new Set([...lives].filter(([, life]) => life.alive).map(([client]) => clientParts(client).host));
    say(agents, `${format.plural(said.agents, "Agent")}${hosts.size > 1 ? `, ${format.plural(hosts.size, "host")}` : ""}`);
    const wrong = said.problems.length;
    say(problems, wrong ? `${format.plural(wrong, "problem")}: ${said.problems[0]}` : "nothing needs you");
    problems.classList.toggle("bad", wrong > 0);
    problems.title = said.problems.slice(0, TITLED).join("\n");
  }, EVERY);

  let took = 0;
  let asked = -Infinity;
  /** Ask who lives, one by one, where it is time. */
  async function look() {
    if (!state.who?.kind || state.who.bound) return;
    if (performance.now() - asked < pause(isLookedAt() ? EVERY : SELDOM, took)) return;
    const began = (asked = performance.now());
    const living = await get(url("/v1/projections", { name: TOLD }));
    took = performance.now() - began;
    note(living);
  }
  repeat(look, EVERY);
  whenLookedAt(() => void trying(look()));
}
