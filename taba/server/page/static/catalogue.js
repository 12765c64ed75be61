// All names and their Types, as the Server had them last; shared by the views, asked for anew now and then.

import { get } from "./api.js";

const FRESH = 10_000; // ms for which what is known is good enough; an answer that has not changed costs 304 and no body

/** @type {{names: string[], types: Record<string, string>, at: number}} */
export const catalogue = { names: [], types: {}, at: -Infinity };
/** @type {Promise<void> | null} */
let asking = null;

/** Have it as fresh as it must be. Raises Failed. */
export async function freshen() {
  if (performance.now() - catalogue.at < FRESH) return;
  asking ??= get("/v1/types")
    .then((types) => {
      catalogue.types = types;
      catalogue.names = Object.keys(types);
      catalogue.at = performance.now();
    })
    .finally(() => (asking = null));
  await asking;
}

/** Ask anew with the next question. */
export function forget() {
  catalogue.at = -Infinity;
}
