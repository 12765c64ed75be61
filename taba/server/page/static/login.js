// Who has no token is asked for one; it goes to the Server once, and stays with the browser as a cookie that no script reads.

import * as api from "./api.js";
import { h, say } from "./dom.js";

/**
 * @param {HTMLElement} host
 * @returns {import("./view.js").View}
 */
export function loginView(host) {
  const input = h("input", { type: "password", id: "token", autocomplete: "current-password", placeholder: "taba_read_…", spellcheck: "false", required: true });
  const wrong = h("p", { class: "bad", role: "alert" });
  const button = h("button", { class: "main", type: "submit" }, "Log in");
  const form = h(
    "form",
    {
      onsubmit: async (/** @type {Event} */ event) => {
        event.preventDefault();
        button.disabled = true;
        say(wrong, "");
        try {
          await api.login(input.value.trim());
          location.reload();
        } catch (error) {
          say(wrong, /** @type {Error} */ (error).message);
          input.select();
        } finally {
          button.disabled = false;
        }
      },
    },
    h("h1", null, "Taba"),
    h("p", null, "This Server asks for a token. One for reading shows everything; one for admin may change things, too."),
    h("label", { for: "token" }, "Token"),
    input,
    button,
    wrong,
    h("p", { class: "quiet" }, "Whoever runs this Server makes one with ", h("code", null, "taba token new read"), "."),
  );
  host.replaceChildren(form);
  input.focus();
  return { title: "Log in", keys: {}, end() {} };
}
