// All names and their Types, as the Server had them last; shared by the views, asked for anew now and then.

import { get } from "./api.js";
import { parse } from "./names.js";

const FRESH = 10_000; // ms for which what is known is good enough; an answer that has not changed costs 304 and no body

export const MOST_ROWS = 1000; // of one answer of the overview
export const MOST_HEARD = 200; // Tabs that one stream may have

/** @type {{names: string[], types: Record<string, string>, families: Map<string, number>, at: number}} */
export const catalogue = { names: [], types: Object.create(null), families: new Map(), at: -Infinity };
/** @type {Promise<void> | null} */
let asking = null;

/** Have it as fresh as it must be. Raises Failed. */
export async function freshen() {
  if (performance.now() - catalogue.at < FRESH) return;
  asking ??= get("/v1/types")
    .then((types) => {
      catalogue.types = types;
      catalogue.names = Object.keys(types);
      catalogue.families = new Map();
      for (const name of catalogue.names) {
        const { base } = parse(name);
        if (base !== name) catalogue.families.set(base, (catalogue.families.get(base) ?? 0) + 1);
      }
      catalogue.at = performance.now();
    })
    .finally(() => (asking = null));
  await asking;
}

/**
 * Of these names as many as may be asked for together, where `most` Tabs may match: a base name means all its
 * labelled Tabs, too.
 * @param {string[]} names
 * @param {number} most
 */
export function within(names, most) {
  let left = most;
  return names.filter((name) => {
    const matching = 1 + (catalogue.families.get(name) ?? 0);
    if (matching > left) return false;
    left -= matching;
    return true;
  });
}

/** Ask anew with the next question. */
export function forget() {
  catalogue.at = -Infinity;
}
