// Which processes live, since when, how often they were started and what they dropped: as Agents tell it, whoever opens a page when.

/**
 * `since`: since when it lives, or is gone, in Unix seconds; null: nobody says.
 * @typedef {{alive: boolean | null, since: number | null, processes: number | null, restarts: number | null, dropped: number | null, heard: number | null}} Life
 */

export const TOLD = ["taba.alive", "taba.process", "taba.starts"];

/** @type {Map<string, Life>} */
export const lives = new Map();
/** Called when somebody begins to look. */
let wake = () => {};
/** @type {Set<() => void>} */
const watchers = new Set();

/** Whether a view shows who lives. */
export function isLookedAt() {
  return watchers.size > 0;
}

/** @param {() => void} doing called when somebody begins to look */
export function whenLookedAt(doing) {
  wake = doing;
}

/**
 * @param {() => void} watcher
 * @returns {() => void} what ends it
 */
export function watchLives(watcher) {
  watchers.add(watcher);
  wake();
  return () => watchers.delete(watcher);
}

/**
 * What the Server says of the Tabs TOLD: a Projection by Client of each. What a shard that is away has stays as it was.
 * @param {Record<string, any>} said
 */
export function note(said) {
  const [alive, process, starts] = TOLD.map((name) => (typeof said[name]?.error === "string" ? null : said[name]));
  if (!alive) return; // nobody is gone by that
  for (const client of lives.keys()) if (!Object.hasOwn(alive, client)) lives.delete(client);
  for (const [client, projection] of Object.entries(alive)) {
    if (!projection) continue;
    const known = lives.get(client);
    const own = (/** @type {any} */ of) => (of && Object.hasOwn(of, client) ? of[client] : null);
    const facts = own(process)?.value;
    const processes = figure(facts?.processes) ?? known?.processes ?? null;
    const started = figure(own(starts)?.distinct);
    lives.set(client, {
      alive: projection.value === null || projection.value === undefined ? null : Boolean(projection.value),
      since: figure(facts?.since) ?? known?.since ?? null,
      processes,
      restarts: started === null ? (known?.restarts ?? null) : Math.max(0, started - Math.max(1, processes ?? 1)),
      dropped: figure(facts?.dropped) ?? known?.dropped ?? null,
      heard: projection.time ?? known?.heard ?? null,
    });
  }
  for (const watcher of watchers) watcher();
}

/**
 * @param {any} value
 * @returns {number | null}
 */
function figure(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
