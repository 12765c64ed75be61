// One /v1/stream for all that anybody here wants to hear of: runs in the SharedWorker of a browser, or in the page where there is none.
// Whoever listens says which Tabs it shows; the stream asks for all of them together. Nobody: no stream.

/** @typedef {{aggregates: Record<string, any>, time: number, every: number, error?: string}} Said */
/** @typedef {{said?: Said, away?: string | null}} Message */

const SETTLE = 150; // ms in which further wishes come together
const MOST = 200; // Tabs that one stream has; the first that were wished for go before
const RETRY = [500, 1000, 2000, 5000];

export class Stream {
  constructor() {
    /** @type {Map<object, {names: string[], tell: (message: Message) => void}>} */
    this.listeners = new Map();
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {EventSource[]} */
    this.before = []; // what is heard until the one in its place has begun
    this.asked = "";
    this.tries = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** @type {Said | null} */
    this.last = null;
    this.opened = 0;
  }

  /**
   * @param {object} who
   * @param {string[]} names
   * @param {(message: Message) => void} tell
   */
  wish(who, names, tell) {
    if (names.length) this.listeners.set(who, { names, tell });
    else this.listeners.delete(who);
    const last = this.last;
    if (names.length && last && names.some((name) => name in last.aggregates)) tell({ said: last });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#open(), SETTLE);
  }

  /** @param {Message} message */
  #tell(message) {
    for (const { tell } of this.listeners.values()) tell(message);
  }

  #closeBefore() {
    for (const source of this.before) source.close();
    this.before = [];
  }

  #open() {
    /** @type {Set<string>} */
    const names = new Set();
    for (const listener of this.listeners.values()) for (const name of listener.names) if (names.size < MOST) names.add(name);
    const asked = [...names].sort();
    const url = asked.length ? `/v1/stream?${asked.map((name) => `name=${encodeURIComponent(name)}`).join("&")}` : "";
    if (url === this.asked && this.source && this.source.readyState !== 2) return;
    if (this.source?.readyState === 1) this.before.push(this.source);
    else this.source?.close(); // it had not begun, and nothing else would ever end it
    this.asked = url;
    if (!url) {
      this.#closeBefore();
      this.source = null;
      this.last = null;
      return;
    }
    const source = new EventSource(url);
    this.source = source;
    this.opened += 1;
    source.onopen = () => {
      if (source === this.source) this.#closeBefore(); // only now: until then the one before is listened to
    };
    source.onmessage = (event) => {
      if (source !== this.source && !this.before.includes(source)) return;
      this.tries = 0;
      this.last = JSON.parse(event.data);
      this.#tell({ said: /** @type {Said} */ (this.last), away: null });
    };
    source.onerror = () => {
      source.close();
      if (source !== this.source) return;
      this.#closeBefore();
      this.source = null;
      this.#tell({ away: "The Server does not answer." });
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.#open(), RETRY[Math.min(this.tries++, RETRY.length - 1)]);
    };
  }
}
