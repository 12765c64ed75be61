// Clients: by host and program, alive or gone; and their processes as Agents tell of them.

import { get, now } from "./api.js";
import { fill, h, say, table } from "./dom.js";
import * as format from "./format.js";
import { lives, watchLives } from "./life.js";
import { status } from "./line.js";
import { repeat } from "./live.js";
import { clientParts, hash, mentions } from "./names.js";

const MOST = 500; // Clients of a list that are shown at once
const kept = { text: "" };

/** @param {string} client */
export function lamp(client) {
  const life = lives.get(client);
  const word = !life ? "not known" : life.alive === null ? "not heard of" : life.alive ? "alive" : "gone";
  return h("span", { class: `lamp ${life && life.alive !== null ? (life.alive ? "good" : "bad") : ""}` }, word);
}

/**
 * How long it lives, or is gone.
 * @param {import("./life.js").Life} life
 */
export function ageOf(life) {
  if (life.since === null) return format.NONE;
  const age = format.lasting(Math.max(0, now() - life.since));
  return life.alive === false ? `gone ${age}` : age;
}

/**
 * @param {HTMLElement} host
 * @returns {import("./view.js").View}
 */
export function clients(host) {
  /** @type {string[]} */
  let all = [];
  const input = h("input", { type: "search", id: "search", placeholder: "Search Clients", "aria-label": "Search Clients", value: kept.text, autocomplete: "off", oninput: () => ((kept.text = input.value), draw()) });
  const total = h("span", { class: "quiet", role: "status" });
  const body = h("div");
  fill(host, h("h1", null, "Clients"), h("div", { class: "tools" }, input, total), body);

  function draw() {
    const words = kept.text.toLowerCase().split(/\s+/).filter(Boolean);
    const everyone = [...new Set([...all, ...lives.keys()])].sort();
    const found = everyone.filter((client) => words.every((word) => client.toLowerCase().includes(word)));
    say(total, words.length ? `${format.count(found.length)} of ${format.plural(everyone.length, "Client")}` : format.plural(everyone.length, "Client"));
    /** @type {Map<string, string[]>} */
    const hosts = new Map();
    for (const client of found.slice(0, MOST)) {
      const { host: name } = clientParts(client);
      hosts.set(name, [...(hosts.get(name) ?? []), client]);
    }
    fill(
      body,
      found.length ? null : h("p", { class: "empty" }, words.length ? "No Client matches." : "No Client has recorded anything yet."),
      ...[...hosts].map(([name, of]) => {
        const alive = of.filter((client) => lives.get(client)?.alive).length;
        return h(
          "section",
          { class: "host", "data-key": name },
          h("h2", null, name || "without a host", h("span", { class: "quiet" }, `${format.plural(of.length, "Client")}, ${format.count(alive)} alive`)),
          h("ul", { class: "tiles" }, ...of.map((client) => h("li", { "data-key": client }, h("a", { href: hash("client", client) }, lamp(client), h("span", null, clientParts(client).host ? client.slice(name.length + 1) : client))))),
        );
      }),
      found.length > MOST ? h("p", { class: "quiet" }, `${format.count(found.length - MOST)} more: search for them.`) : null,
    );
  }
  const ends = [
    repeat(async () => {
      all = await get("/v1/clients");
      draw();
    }, 10_000),
    watchLives(draw),
  ];
  return { title: "Clients", keys: { "/": ["search Clients", () => input.focus()] }, end: () => ends.forEach((end) => end()) };
}

/**
 * @param {HTMLElement} host
 * @returns {import("./view.js").View}
 */
export function processes(host) {
  const body = h("div");
  fill(host, h("h1", null, "My processes"), h("p", { class: "quiet" }, "As the Agents of their hosts tell it. A process is told by its ring: one that had to make another counts as started again."), body);

  function draw() {
    /** @type {Map<string, string[]>} */
    const programs = new Map();
    for (const name of [...lives.keys()].sort()) {
      const { host: machine, program } = clientParts(name);
      const key = `${program}\n${machine}`;
      programs.set(key, [...(programs.get(key) ?? []), name]);
    }
    const problems = /** @type {string[]} */ (status.last?.problems ?? []);
    const dropped = Object.entries(status.last?.dropped_by_reason ?? {}).filter(([, many]) => many);
    fill(
      body,
      dropped.length ? h("p", { class: "bad" }, `Dropped by Servers: ${dropped.map(([reason, many]) => `${reason} ${format.count(/** @type {number} */ (many))}`).join(", ")}.`) : null,
      programs.size ? null : h("p", { class: "empty" }, "No process with a ring is known. An Agent says who lives."),
      ...[...programs].sort(([one], [other]) => (one < other ? -1 : 1)).map(([key, of]) => {
        const [program, machine] = key.split("\n");
        const alive = of.filter((name) => lives.get(name)?.alive).length;
        const sum = (/** @type {"restarts" | "dropped"} */ what) => of.reduce((total, name) => total + (lives.get(name)?.[what] ?? 0), 0);
        const [restarts, lost] = [sum("restarts"), sum("dropped")];
        return h(
          "section",
          { class: "host", "data-key": key },
          h("h2", null, program || "unnamed", h("span", { class: "quiet" }, [`${machine ? `on ${machine}, ` : ""}${format.count(alive)} of ${format.count(of.length)} alive`, restarts ? format.plural(restarts, "restart") : "", lost ? `${format.plural(lost, "event")} dropped` : ""].filter(Boolean).join(", "))),
          table(
            `Processes of ${program}`,
            ["Client", "", "age", "restarts", "dropped", "heard of", "wrong"],
            of.map((name) => {
              const life = /** @type {import("./life.js").Life} */ (lives.get(name));
              const several = life.processes !== null && life.processes > 1 ? ` ×${life.processes}` : "";
              return [
                h("a", { href: hash("client", name) }, name),
                h("span", null, lamp(name), several),
                ageOf(life),
                life.restarts === null ? format.NONE : format.count(life.restarts),
                life.dropped === null ? format.NONE : life.dropped ? h("b", { class: "bad" }, format.count(life.dropped)) : "0",
                life.heard === null ? format.NONE : format.time(life.heard),
                problems.filter((problem) => mentions(problem, name)).join("; "),
              ];
            }),
            [false, false, true, true, true, true, false],
            of,
          ),
        );
      }),
    );
  }
  draw();
  const ends = [watchLives(draw)];
  return { title: "My processes", keys: {}, end: () => ends.forEach((end) => end()) };
}
