// The system in one line: events a second, freshness, Clients that live, what is wrong in words.

import { Failed, get, state, url, whoAmI } from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";
import { TOLD, isLookedAt, lives, note, whenLookedAt } from "./life.js";
import { pause, repeat, trying } from "./live.js";
import { clientParts } from "./names.js";

const EVERY = 2000; // ms
const SERVERS_EVERY = 5000; // ms: they say it as seldom
const MOST_WHO = 3; // who has a problem, named one by one
const TITLED = 20; // problems that the line's title has
const SELDOM = 30_000; // ms between two questions of who lives, one by one, while no view shows it

/** What the status said last, for views that show more of it; its problems are the Agents' and the other Servers', too. */
export const status = { last: /** @type {any} */ (null), at: 0 };

/** All Servers, with the problems of each as it said lately. */
const servers = { last: /** @type {Promise<any[] | null>} */ (Promise.resolve(null)), at: -Infinity };

/** Ask for them, not more often than they say anything; null: nobody can tell now. */
export function askServers() {
  if (performance.now() - servers.at >= SERVERS_EVERY) {
    servers.at = performance.now();
    servers.last = get("/v1/servers?detail=1").catch((failure) => {
      servers.at = -Infinity;
      return unanswered(failure);
    });
  }
  return servers.last;
}

/**
 * A problem but for its numbers: the same sentence with another count is the same problem.
 * @param {string} problem
 */
function kindOf(problem) {
  return problem.replace(/\d+(\.\d+)?/g, "#");
}

/**
 * What others say, each sentence once, with those that say it in front.
 * @param {[string, any][]} all who says what: a list of sentences, or anything else of whom nothing is known
 */
function together(all) {
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const [who, said] of all) {
    if (!Array.isArray(said)) continue;
    for (const problem of new Set(said.map(String))) found.set(problem, [...(found.get(problem) ?? []), who]);
  }
  return [...found].map(([problem, who]) => `${named(who)}: ${problem}`);
}

/** @param {string[]} who */
function named(who) {
  return `${who.slice(0, MOST_WHO).join(", ")}${who.length > MOST_WHO ? ` and ${format.count(who.length - MOST_WHO)} more` : ""}`;
}

/**
 * The problems of this Server and of the others: what others have as well stands once, as it is here.
 * @param {string[]} here
 * @param {[string, any][]} others
 */
function ofServers(here, others) {
  /** @type {Map<string, string[]>} */
  const alike = new Map(here.map((problem) => [kindOf(problem), []]));
  const left = others.map(([url, said]) => /** @type {[string, any]} */ ([url, Array.isArray(said) ? said.map(String).filter((problem) => {
    const also = alike.get(kindOf(problem));
    if (also && !also.includes(url)) also.push(url);
    return !also;
  }) : null]));
  return [...here.map((problem) => {
    const also = alike.get(kindOf(problem)) ?? [];
    return also.length ? `${problem} (also at ${named(also)})` : problem;
  }), ...together(left)];
}

/** Ask for it. Raises Failed. */
export async function askStatus() {
  /** @type {[any, any, any]} */
  const [said, agents, all] = await Promise.all([get("/v1/status"), state.who?.bound ? null : get("/v1/projections?name=taba.problems").catch(unanswered), askServers()]);
  const others = (all ?? []).filter((/** @type {any} */ one) => one.url !== said.url).map((/** @type {any} */ one) => [one.url, one.problems]);
  const told = Object.entries(agents?.["taba.problems"] ?? {}).map(([agent, projection]) => /** @type {[string, any]} */ ([agent, projection?.value]));
  said.problems = [...ofServers(said.problems, others), ...together(told)];
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
