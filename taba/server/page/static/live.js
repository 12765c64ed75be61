// What a view hears of the Tabs that it shows, each second, while anybody can see it.

import { Failed, byName } from "./api.js";
import { fill, h } from "./dom.js";
import { Stream } from "./stream.js";

/** @typedef {import("./stream.js").Said} Said */

const SHARE = 20; // times as long as an answer took is not asked again …
const MOST_PAUSE = 30_000; // … up to so many ms
const BREATH = 15_000; // ms between two signs of life to the worker
/** @type {(said: Said) => void} */
let hear = () => {};
/** @type {string[]} */
let wanted = [];
/** @type {string | null} */
let error = null;
/** @type {Set<() => void>} */
const watchers = new Set();

/** @param {import("./stream.js").Message} message */
function tell(message) {
  const before = error;
  if (message.away) error = message.away;
  else if (message.said) error = message.said.error ?? null;
  if (before !== error) for (const watcher of watchers) watcher();
  if (message.said && !document.hidden) hear({ ...message.said, aggregates: byName(message.said.aggregates) });
}

/** What the stream says is away; null: nothing. */
export function away() {
  return error;
}

/** @param {() => void} watcher */
export function watch(watcher) {
  watchers.add(watcher);
}

/** @type {(names: string[]) => void} */
let send;
/** @type {() => void} */
let breathe = () => {};

function fallBack() {
  const stream = new Stream();
  const me = {};
  send = (names) => stream.wish(me, names, tell);
  breathe = () => {};
  Object.assign(window, { tabaStream: stream });
}

try {
  const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("taba", { createScriptURL: (/** @type {string} */ url) => (url === "/page/worker.js" ? url : "") });
  const worker = new SharedWorker(policy ? policy.createScriptURL("/page/worker.js") : "/page/worker.js", { type: "module", name: "taba" });
  worker.port.onmessage = ({ data }) => tell(data);
  worker.onerror = () => {
    fallBack();
    push();
  };
  send = (names) => worker.port.postMessage({ names });
  breathe = () => worker.port.postMessage({});
} catch {
  fallBack();
}

function push() {
  const names = document.hidden ? [] : wanted;
  send(names);
  if (!names.length && error) {
    error = null;
    for (const watcher of watchers) watcher();
  }
}

setInterval(() => breathe(), BREATH);
document.addEventListener("visibilitychange", push);
addEventListener("pagehide", () => send([]));

let turns = 0;

/**
 * The ear of a view that begins: whatever the view before it still waits for, that one hears nothing more, and is not asked for.
 * @returns {(names: string[], told: (said: Said) => void) => void} shows these Tabs from now on, and no others
 */
export function listener() {
  const turn = ++turns;
  listen([], () => {});
  return (names, told) => {
    if (turn === turns) listen(names, told);
  };
}

/**
 * @param {string[]} names
 * @param {(said: Said) => void} told
 */
function listen(names, told) {
  hear = told;
  if (names.length === wanted.length && names.every((name, at) => name === wanted[at])) return;
  wanted = names;
  push();
}

/**
 * What a Server refused, or did not answer, api.js has said; anything else is a fault of this page.
 * @template T
 * @param {Promise<T>} doing
 * @returns {Promise<T | undefined>}
 */
export async function trying(doing) {
  try {
    return await doing;
  } catch (failure) {
    if (!(failure instanceof Failed)) console.error(failure);
    return undefined;
  }
}

/**
 * Do what a token that is bound may not be allowed to: then the refusal is shown in the place of the answer, and false is told.
 * @param {HTMLElement} host
 * @param {() => Promise<void>} doing
 * @returns {Promise<boolean>} whether to ask again
 */
export async function allowed(host, doing) {
  try {
    await doing();
    return true;
  } catch (failure) {
    if (!(failure instanceof Failed) || failure.status !== 403) throw failure;
    fill(host, h("p", { class: "empty" }, failure.message));
    return false;
  }
}

/**
 * How long to wait before something is asked again that took so long the last time: much longer, so that it costs little, but a page that once
 * waited for a Server that had no time does not stand still for minutes.
 * @param {number} least ms
 * @param {number} took ms
 */
export function pause(least, took) {
  return Math.max(least, Math.min(took * SHARE, MOST_PAUSE));
}

/**
 * Do something now and again while the page can be seen, and never twice at once, until it tells false. Returns what ends it.
 * @param {() => Promise<boolean | void>} doing
 * @param {number | (() => number)} every ms
 * @returns {() => void}
 */
export function repeat(doing, every) {
  let over = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let running = false;
  async function once() {
    clearTimeout(timer);
    if (over || running) return;
    if (!document.hidden) {
      running = true;
      if ((await trying(doing())) === false) over = true;
      running = false;
    }
    if (!over) timer = setTimeout(once, typeof every === "number" ? every : every());
  }
  const wake = () => {
    if (!document.hidden) void once();
  };
  document.addEventListener("visibilitychange", wake);
  void once();
  return () => {
    over = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", wake);
  };
}
