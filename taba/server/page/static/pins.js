// Tabs that a reader has pinned: the board "mine" of this browser, until it is kept under a name.

const KEY = "taba.pins";
export const MOST_PINS = 64; // as many as a board has

/** @returns {string[]} */
export function pins() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((name) => typeof name === "string").slice(0, MOST_PINS) : [];
  } catch {
    return []; // a browser that keeps nothing, or somebody's nonsense
  }
}

/** @param {string[]} names */
export function setPins(names) {
  try {
    localStorage.setItem(KEY, JSON.stringify(names.slice(0, MOST_PINS)));
  } catch {
    // a browser that keeps nothing: the address has the board
  }
}

/** @param {string} name */
export function pinned(name) {
  return pins().includes(name);
}

/** @param {string} name */
export function togglePin(name) {
  const now = pins();
  setPins(now.includes(name) ? now.filter((one) => one !== name) : [...now, name]);
}
