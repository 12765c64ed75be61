// The system: what needs a person, Servers, shards and their buckets, Handlers, jobs.

import { ask, get, mayChange, now, url } from "./api.js";
import { fill, h, say, style, table } from "./dom.js";
import * as format from "./format.js";
import { askServers, askStatus } from "./line.js";
import { allowed, repeat } from "./live.js";

const MOVED = 60_000; // ms for which a bucket that changed its shard is marked
const MOST_CELLS = 4096; // buckets that are drawn one by one
const MOST_PROBLEMS = 200; // that are shown: a thousand Agents may have the same one
const NEARLY_FULL = 0.8; // of a bound, from which on it stands out
const MOST_NAMED = 12; // buckets that are on their way
const JOBS = /** @type {[string, string, string][]} */ ([["check", "Check", "Compare maps and owner keys"], ["prune", "Prune", "Forget what is idle for long"], ["upgrade", "Upgrade", "Write States of older versions anew"]]);

/**
 * A link to the page of a Server itself, where its address is one.
 * @param {string} address
 */
function addressOf(address) {
  return /^https?:\/\//.test(address) ? h("a", { href: `${address}/#/system`, rel: "noreferrer" }, address) : address;
}

/**
 * How much is wrong at a Server; the sentences stand above.
 * @param {any} one
 */
function wrongAt(one) {
  if (!Array.isArray(one.problems)) return h("span", { class: "quiet" }, "not told yet, or by an older version: see its own page");
  return one.problems.length ? h("b", { class: "bad" }, format.plural(one.problems.length, "problem")) : h("span", { class: "good" }, "nothing");
}

/**
 * @param {HTMLElement} host
 * @returns {import("./view.js").View}
 */
export function system(host) {
  const problems = h("section");
  const servers = h("section");
  const shards = h("section");
  const handlers = h("section");
  const bounds = h("section");
  const jobs = h("section");
  const told = h("p", { class: "quiet", role: "status" });
  fill(host, h("h1", null, "System"), problems, servers, shards, jobs, handlers, bounds);
  /** @type {Map<string, {shard: string, uses: number, moved: number, busy: number, to: string}>} */
  const buckets = new Map();
  let isMoving = false;

  /** @param {() => Promise<any>} doing */
  async function act(doing) {
    try {
      await doing();
      say(told, "");
    } catch (error) {
      say(told, /** @type {Error} */ (error).message);
    }
    await drawJobs().catch(() => {});
  }

  async function drawJobs() {
    const all = await get("/v1/jobs");
    fill(
      jobs,
      h("h2", { id: "jobs" }, "Jobs"),
      mayChange() ? h("div", { class: "tools" }, ...JOBS.map(([kind, text, why]) => h("button", { id: `job-${kind}`, "data-key": kind, title: why, onclick: () => act(() => ask("POST", `/v1/${kind}`)) }, text)), told) : null,
      all.length
        ? table("Jobs, newest first", ["job", "state", "done", "started", "says", ""], all.slice(0, 20).map((/** @type {any} */ job) => [job.kind + (job.dry_run ? " (dry run)" : ""), job.state, job.state === "running" ? h("progress", { max: job.total || 1, "aria-label": job.kind, value: job.done }) : `${format.count(job.done)} / ${format.count(job.total)}`, format.moment(job.started), job.message, job.state === "running" && mayChange() ? h("button", { class: "small", onclick: () => act(() => ask("DELETE", url("/v1/jobs", { id: job.id }))) }, "Cancel") : ""]), [], all.map((/** @type {any} */ job) => job.id))
        : h("p", { class: "quiet" }, "None has run lately."),
    );
  }

  const ends = [
    repeat(async () => {
      const [said, all] = await Promise.all([askStatus(), askServers()]);
      fill(
        problems,
        h("h2", { id: "problems" }, "What needs you"),
        said.problems.length ? h("ul", { class: "problemlist" }, ...said.problems.slice(0, MOST_PROBLEMS).map((/** @type {string} */ problem) => h("li", null, problem)), said.problems.length > MOST_PROBLEMS ? h("li", null, `and ${format.count(said.problems.length - MOST_PROBLEMS)} more`) : null) : h("p", { class: "good" }, "Nothing."),
      );
      const { store, latency } = said;
      fill(
        servers,
        h("h2", { id: "servers" }, "Servers", h("span", { class: "quiet" }, `store ${store.url}, ${format.count(store.buckets)} buckets, ${format.plural(said.folded, "event")} folded, ${format.plural(said.dead_letters, "dead letter")}`)),
        all ? table("Every Server", ["address", "what is wrong", "does", "up for"], all.map((/** @type {any} */ one) => [addressOf(one.url), wrongAt(one), (one.roles ?? []).join(", "), format.lasting(now() - one.started)]), [false, false, false, true], all.map((/** @type {any} */ one) => one.url)) : null,
        !all || all.some((/** @type {any} */ one) => one.complete === false) ? h("p", { class: "warn" }, "Which other Servers there are, and what is wrong with them, nobody can tell now: see their own pages, at the addresses that they listen at.") : null,
        h("p", { class: "quiet" }, `This one: version ${said.version}, ${format.plural(said.workers, "worker")}; from record to visible p50 ${format.amount(latency?.p50, "s")}, p95 ${format.amount(latency?.p95, "s")}, p99 ${format.amount(latency?.p99, "s")}; ${format.plural(said.listening.connections, "connection")}, ${format.count(said.listening.listeners)} listening; ${format.plural(said.agents, "Agent")} heard of lately.`),
      );
      const held = Object.entries(said.held);
      fill(
        bounds,
        h("h2", { id: "bounds" }, "Bounds", h("span", { class: "quiet" }, "of what this Server has a bound for, how much there is")),
        table("What has a bound", ["of", "there is", "at the most", "one asker has", "of", "full"], held.map(([what, one]) => [what.replaceAll("_", " "), ...[one.count, one.most, one.greatest, one.each].map((figure) => (figure === undefined ? "" : what.endsWith("_bytes") ? format.amount(figure, "B") : format.count(figure))), one.count >= NEARLY_FULL * one.most ? h("b", { class: "bad" }, format.percent(one.count / one.most)) : format.percent(one.count / one.most)]), [false, true, true, true, true, true], held.map(([what]) => what)),
      );
      const names = Object.keys(said.handlers).sort();
      fill(
        handlers,
        h("h2", { id: "handlers" }, "Types"),
        table("Handlers", ["Type", "from", "version", "errors"], names.map((name) => [name, said.handlers[name].origin, said.handlers[name].version, said.handlers[name].errors ? h("b", { class: "bad" }, format.count(said.handlers[name].errors)) : "0"]), [false, false, true, true]),
        said.types_missing.length ? h("p", { class: "bad" }, `Nobody here knows: ${said.types_missing.join(", ")}.`) : null,
      );
    }, 3000),
    repeat(() => allowed(shards, drawAll), () => (isMoving ? 1000 : 3000)),
    repeat(() => allowed(jobs, drawJobs), 2000),
  ];

  async function drawAll() {
    const all = await get("/v1/shards?detail=1");
    const at = Date.now();
    for (const shard of all) {
      for (const [bucket, uses] of Object.entries(shard.uses ?? {})) {
        const known = buckets.get(bucket);
        const to = shard.moving?.[bucket] ?? "";
        if (!known) buckets.set(bucket, { shard: shard.name, uses, moved: 0, busy: 0, to });
        else {
          known.to = to;
          if (known.shard !== shard.name) Object.assign(known, { shard: shard.name, moved: at });
          known.busy = 0.5 * known.busy + 0.5 * Math.max(0, uses - known.uses);
          known.uses = uses;
        }
      }
    }
    isMoving = all.some((/** @type {any} */ shard) => Object.keys(shard.moving ?? {}).length > 0);
    drawShards(all, at);
  }

  /**
   * @param {any[]} all
   * @param {number} at
   */
  function drawShards(all, at) {
    const most = Math.max(...[...buckets.values()].map((bucket) => bucket.busy), 1);
    fill(
      shards,
      h("h2", { id: "shards" }, "Shards"),
      table("Every shard", ["shard", "address", "buckets", "keys", "bytes", "operations"], all.map((shard) => [shard.name, shard.url, format.count(shard.buckets), format.count(shard.keys), format.amount(shard.bytes, "bytes"), format.count(shard.ops)]), [false, false, true, true, true, true]),
      ...(buckets.size <= MOST_CELLS
        ? all.map((shard) => {
            const mine = [...buckets].filter(([, bucket]) => bucket.shard === shard.name).sort(([one], [other]) => Number(one) - Number(other));
            const moved = mine.filter(([, bucket]) => at - bucket.moved < MOVED).length;
            const leaving = mine.filter(([, bucket]) => bucket.to);
            const news = [
              moved ? `${format.count(moved)} came within the last minute` : "",
              leaving.length ? `${format.count(leaving.length)} on ${leaving.length === 1 ? "its" : "their"} way to ${[...new Set(leaving.map(([, bucket]) => bucket.to))].join(", ")}: ${leaving.slice(0, MOST_NAMED).map(([name]) => name).join(", ")}${leaving.length > MOST_NAMED ? ", …" : ""}` : "",
              shard.moving === null ? "which are on their way cannot be told now" : "",
            ].filter(Boolean).map((text) => `; ${text}`).join("");
            const map = h("div", { class: "map", role: "img", "aria-label": `${format.plural(mine.length, "bucket")} of ${shard.name}${news}` });
            for (const [name, bucket] of mine) {
              const cell = h("i", { title: bucket.to ? `bucket ${name}, on its way to ${bucket.to}` : `bucket ${name}`, class: bucket.to ? "leaving" : at - bucket.moved < MOVED ? "moved" : null });
              style(cell, "--busy", String(Math.sqrt(bucket.busy / most)));
              map.append(cell);
            }
            return h("figure", { "data-key": shard.name }, h("figcaption", { class: "quiet" }, `${shard.name}: its buckets, darker the more this Server uses them${news}`), map);
          })
        : []),
    );
  }

  return { title: "System", keys: {}, end: () => ends.forEach((end) => end()) };
}
