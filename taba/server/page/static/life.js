// Which processes live, and what this page has seen of them: alive since when, and how often again. The Server keeps no such past.

/** @typedef {{alive: boolean, first: number, since: number, heard: number, restarts: number, deaths: number}} Life */

/** @type {Map<string, Life>} */
export const lives = new Map();
const FORGOTTEN = 3600; // seconds for which a process is shown that the Server knows no more
let began = 0;
/** Called when somebody begins to look. */
let wake = () => {};
/** @type {Set<() => void>} */
const watchers = new Set();

/** Since when this page looks; Unix seconds. */
export function lookingSince() {
  return began;
}

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
 * What the Server says of `taba.alive`: a Projection by Client.
 * @param {Record<string, any>} said
 * @param {number} now
 */
export function note(said, now) {
  began ||= now;
  for (const [client, projection] of Object.entries(said)) {
    if (!projection) continue;
    const alive = Boolean(projection.value);
    const known = lives.get(client);
    if (!known) lives.set(client, { alive, first: now, since: now, heard: projection.time ?? now, restarts: 0, deaths: 0 });
    else {
      known.heard = projection.time ?? known.heard;
      if (alive !== known.alive) {
        known.alive = alive;
        known.since = now;
        if (alive) known.restarts += 1;
        else known.deaths += 1;
      }
    }
  }
  for (const [client, known] of lives) {
    if (Object.hasOwn(said, client)) continue;
    if (known.alive) Object.assign(known, { alive: false, since: now, deaths: known.deaths + 1 });
    else if (now - known.since > FORGOTTEN) lives.delete(client); // a page stays open for weeks
  }
  for (const watcher of watchers) watcher();
}
