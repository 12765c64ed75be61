// Questions to the Server: JSON or text back, errors as sentences, and what is known of whether it answers.

export class Failed extends Error {
  /**
   * @param {number} status 0: nobody answered
   * @param {string} error
   * @param {string} detail
   */
  constructor(status, error, detail) {
    super(detail);
    this.status = status;
    this.error = error;
  }
}

const PARTIAL = /^\/v1\/(clients|types|projections|aggregates|superaggregate|slots|overview)\b/;

const STORELESS = /^\/(login|logout|v1\/status|v1\/servers)\b/; // answered while the store is away: they do not tell that it is back
const SILENT = "The Server does not answer.";

/** @typedef {{tokens: boolean, kind: string | null, bound: string | null}} Who */

/** @type {{away: string | null, since: number, who: Who | null, left: string | null}} */
export const state = { away: null, since: 0, who: null, left: null };

/** @type {Set<() => void>} */
const watchers = new Set();
const NEAR = 2; // seconds by which clocks are the same: the Server's is told in whole ones
let ahead = 0; // seconds that the Server's clock is ahead of this one

/** Unix seconds, by the Server's clock: that is how old what it tells is. */
export function now() {
  return Date.now() / 1000 + ahead;
}

/** @param {Response} response */
function compareClocks(response) {
  const at = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(at)) return;
  const found = at / 1000 + 0.5 - Date.now() / 1000;
  ahead = Math.abs(found) > NEAR ? found : 0;
}

/**
 * Be called when `state` has changed.
 * @param {() => void} watcher
 */
export function watch(watcher) {
  watchers.add(watcher);
}

function changed() {
  for (const watcher of watchers) watcher();
}

/** @param {string | null} away */
export function setAway(away) {
  if ((state.away === null) !== (away === null)) state.since = Date.now();
  if (state.away !== away) {
    state.away = away;
    changed();
  }
}

/**
 * What a Server said by name, as a dictionary that has these names and nothing else: one may be called `constructor`.
 * @param {any} said
 * @returns {any}
 */
export function byName(said) {
  return said && typeof said === "object" && !Array.isArray(said) ? Object.setPrototypeOf(said, null) : said;
}

/**
 * Ask. Raises Failed.
 * @param {string} method
 * @param {string} path
 * @param {{body?: any, headers?: Record<string, string>, signal?: AbortSignal, text?: boolean}} [options]
 * @returns {Promise<any>}
 */
export async function ask(method, path, options = {}) {
  /** @type {Response} */
  let response;
  // what can be reached is shown, and what cannot is said
  if (method === "GET" && PARTIAL.test(path)) path += `${path.includes("?") ? "&" : "?"}partial=1`;
  try {
    response = await fetch(path, {
      method,
      signal: options.signal ?? null,
      headers: { accept: options.text ? "text/plain" : "application/json", ...options.headers },
      body: options.body === undefined ? null : JSON.stringify(options.body),
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    setAway(SILENT);
    throw new Failed(0, "away", SILENT);
  }
  compareClocks(response);
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    const failed = new Failed(response.status, said.error ?? "failed", said.detail ?? response.statusText);
    if (response.status === 503) setAway(failed.message);
    else if (state.away === SILENT) setAway(null);
    if (response.status === 401 && state.who?.kind !== null) {
      state.who = { tokens: true, kind: null, bound: null };
      changed();
    }
    throw failed;
  }
  if (state.away === SILENT || !STORELESS.test(path)) setAway(null);
  if (PARTIAL.test(path)) {
    const left = leftOut(response.headers.get("taba-away"));
    if (left !== state.left) {
      state.left = left;
      changed();
    }
  }
  return options.text ? response.text() : byName(await response.json());
}

/**
 * What the header says is left out, in words.
 * @param {string | null} header
 * @returns {string | null}
 */
function leftOut(header) {
  if (!header) return null;
  try {
    const away = /** @type {Record<string, any>} */ (JSON.parse(header));
    return Object.entries(away).map(([shard, one]) => `${shard}: ${one?.why ?? "away"}`).join("; ");
  } catch {
    return header;
  }
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 */
export function get(path, signal) {
  return ask("GET", path, signal ? { signal } : {});
}

/**
 * A path with parameters; those that are lists stand several times, null ones not at all.
 * @param {string} path
 * @param {Record<string, string | number | string[] | null | undefined>} parameters
 */
export function url(path, parameters) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null || value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) search.append(name, String(one));
  }
  const text = search.toString();
  return text ? `${path}?${text}` : path;
}

/** Find out who we are. Raises Failed where nobody answers. */
export async function whoAmI() {
  try {
    state.who = await get("/login");
  } catch (error) {
    if (!(error instanceof Failed) || error.status !== 401) throw error;
  }
  changed();
}

/**
 * Show a token from now on. Raises Failed.
 * @param {string} token
 */
export async function login(token) {
  state.who = await ask("POST", "/login", { headers: { authorization: `Bearer ${token}` } });
  changed();
}

export async function logout() {
  await ask("POST", "/logout");
  state.who = { tokens: true, kind: null, bound: null };
  changed();
}

/** Whether what is shown may be changed. */
export function mayChange() {
  return state.who?.kind === "admin";
}
