// The SharedWorker: all pages of one browser hear one stream. HTTP/1.1 gives a browser six connections to a Server.

import { Stream } from "./stream.js";

const SILENT = 45_000; // ms after which a page that says nothing is gone: it says something every 15 s
const stream = new Stream();
/** @type {Map<MessagePort, number>} */
const ports = new Map();

/** @type {any} */ (self).onconnect = (/** @type {MessageEvent} */ event) => {
  const port = event.ports[0];
  /** @type {string[]} */
  let names = [];
  ports.set(port, Date.now());
  port.onmessage = ({ data }) => {
    const isBack = !ports.has(port); // it was taken for gone: the whole machine slept, say
    ports.set(port, Date.now());
    names = data.names ?? names;
    if (data.names || isBack) stream.wish(port, names, (message) => port.postMessage(message));
  };
};

setInterval(() => {
  for (const [port, heard] of ports) {
    if (Date.now() - heard > SILENT) {
      ports.delete(port);
      stream.wish(port, [], () => {});
    }
  }
}, SILENT / 3);
