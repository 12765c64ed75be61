// Names of Tabs: base and labels, groups by prefix, and search. Pure.

/** @typedef {{name: string, base: string, labels: [string, string][]}} Name */

/**
 * A canonical name taken apart.
 * @param {string} name
 * @returns {Name}
 */
export function parse(name) {
  const brace = name.indexOf("{");
  if (brace < 0 || !name.endsWith("}")) return { name, base: name, labels: [] };
  /** @type {[string, string][]} */
  const labels = [];
  const text = name.slice(brace + 1, -1);
  const pattern = /([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)/gsy;
  for (let found; (found = pattern.exec(text)); ) {
    labels.push([found[1], found[2].replace(/\\(.)/gs, (_, letter) => (letter === "n" ? "\n" : letter))]);
    if (pattern.lastIndex >= text.length) break;
  }
  return { name, base: name.slice(0, brace), labels };
}

/**
 * What groups a name with others: what stands before the first of . / : _ in its base, as long as anything stands behind it.
 * @param {string} base
 */
export function prefixOf(base) {
  const at = base.search(/[./:_]/);
  return at > 0 && at < base.length - 1 ? base.slice(0, at + 1) : "";
}

/**
 * Which names have all the words, in their name, labels or Type; those first in which a word begins the name or a part of it.
 * @param {string[]} names
 * @param {Record<string, string>} types
 * @param {string} text
 * @returns {string[]}
 */
export function search(names, types, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return names;
  /** @type {[number, string][]} */
  const found = [];
  for (const name of names) {
    const lower = name.toLowerCase();
    const type = (types[name] ?? "").toLowerCase();
    let score = 0;
    for (const word of words) {
      const at = lower.indexOf(word);
      if (at === 0) score += lower.length === word.length ? 6 : 4;
      else if (at > 0) score += /[^a-z0-9]/.test(lower[at - 1]) ? 3 : 1;
      else if (type.includes(word)) score += 1;
      else if (spreads(lower, word)) score += 0.5;
      else {
        score = -1;
        break;
      }
    }
    if (score >= 0) found.push([score, name]);
  }
  found.sort((one, other) => other[0] - one[0] || (one[1] < other[1] ? -1 : 1));
  return found.map(([, name]) => name);
}

/**
 * Whether a sentence names this very Client, not one whose id merely holds this one's.
 * @param {string} text
 * @param {string} client
 */
export function mentions(text, client) {
  return text.includes(client) && new RegExp(`(?<![\\w./:@+-])${client.replace(/\W/g, "\\$&")}(?![\\w/@+-]|[.:][\\w/])`).test(text);
}

/**
 * Whether a word such as `route:cart` names a label and the beginning of its value.
 * @param {string} name
 * @param {string} word
 */
function spreads(name, word) {
  const [key, value] = word.split(/[:=]/, 2);
  return value !== undefined && name.includes(`${key}="${value.replace(/^"/, "")}`);
}

/**
 * The values of each label over these names.
 * @param {string[]} names
 * @returns {Map<string, Set<string>>}
 */
export function labelsOf(names) {
  /** @type {Map<string, Set<string>>} */
  const found = new Map();
  for (const name of names) for (const [key, value] of parse(name).labels) found.set(key, (found.get(key) ?? new Set()).add(value));
  return found;
}

/**
 * Host and program of a client id as the library makes them, `{host}:{program}/{slot}`; what it is otherwise stands as the program.
 * @param {string} client
 * @returns {{host: string, program: string}}
 */
export function clientParts(client) {
  const found = /^([^:]*):(.*?)(?:\/[^/]*)?$/.exec(client);
  if (found) return { host: found[1], program: found[2] };
  return { host: "", program: client.replace(/\/[^/]*$/, "") };
}

/**
 * The address of a view in this page.
 * @param {string} view
 * @param {string} [what]
 */
export function hash(view, what) {
  return what === undefined ? `#/${view}` : `#/${view}/${encodeURIComponent(what)}`;
}
