// The list of the last 200 requests, the newest first.

import { make } from "./dom.js";
import { clock, milliseconds, word } from "./words.js";

export class Requests {
  constructor({ body, empty, pause, onlyErrors, onDevice }) {
    Object.assign(this, { body, empty, pause, onlyErrors, onDevice });
    this.all = [];
    this.paused = false;
    pause.addEventListener("click", () => this.setPaused(!this.paused));
    onlyErrors.addEventListener("change", () => this.draw());
    this.body.addEventListener("click", ({ target }) => {
      const uuid = target.closest("button")?.dataset.uuid;
      if (uuid) this.onDevice(uuid);
    });
  }

  forget() {
    this.all = [];
  }

  // `requests`: the oldest first.
  show(requests) {
    const known = new Set(this.all.map(({ number }) => number));
    const fresh = requests.filter(({ number }) => !known.has(number)).reverse();
    this.all = [...requests].reverse();
    if (fresh.length && !this.paused) this.prepend(fresh);
  }

  setPaused(paused) {
    this.paused = paused;
    this.pause.setAttribute("aria-pressed", String(paused));
    this.pause.dataset.text = paused ? "resume" : "pause";
    this.pause.textContent = word(this.pause.dataset.text);
    if (!paused) this.draw();
  }

  // Rows that stay are not made anew: one may be under a finger or have the focus.
  prepend(fresh) {
    const { body } = this;
    body.prepend(...this.wanted(fresh).map(row));
    const { length } = this.wanted(this.all);
    while (body.childElementCount > length) body.lastElementChild.remove();
    this.empty.hidden = length > 0;
  }

  draw() {
    const shown = this.wanted(this.all);
    this.empty.hidden = shown.length > 0;
    this.body.replaceChildren(...shown.map(row));
  }

  wanted(requests) {
    return this.onlyErrors.checked ? requests.filter(({ code }) => code >= 400) : requests;
  }
}

function row(request) {
  const level = codeLevel(request.code);
  return make("tr", { role: "row" },
    cell("time", clock(request.at)),
    cell("transport", request.transport.toUpperCase()),
    cell("operation", request.operation),
    cell("device", device(request.device_uuid)),
    cell("code", make("span", { class: `code ${level}` }, String(request.code))),
    cell("took number", milliseconds(request.ms)));
}

function cell(kind, content) {
  return make("td", { role: "cell", class: kind }, content);
}

function device(uuid) {
  if (uuid === null) return "";
  const label = word("showDevice", { uuid });
  return make("button", {
    type: "button", class: "link", "data-uuid": uuid, title: uuid, "aria-label": label,
  }, uuid);
}

export function codeLevel(code) {
  if (code >= 500) return "bad";
  return code >= 400 ? "warn" : "good";
}
