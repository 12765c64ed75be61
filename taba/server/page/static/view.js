// What a view is to the page around it.

/**
 * @typedef {object} View
 * @property {string} title of the window, before " · Taba"
 * @property {Record<string, [string, () => void]>} keys key → what it does, in words, and doing it
 * @property {() => void} end ends everything that it began
 */

export {};
