// The list of recent requests, the newest first.

import { byId, make } from "./dom.js";
import { deviceLink, deviceName } from "./names.js";
import { clock, milliseconds, word, wordOrNull } from "./words.js";

export class Requests {
  constructor({ body, empty, pause, onlyErrors, operations, filter }) {
    Object.assign(this, { body, empty, pause, onlyErrors, operations, filter });
    this.all = [];
    this.kinds = new Set();
    this.paused = false;
    pause.addEventListener("click", () => this.setPaused(!this.paused));
    for (const choice of [onlyErrors, operations, filter]) {
      choice.addEventListener("input", () => this.draw());
    }
  }

  forget() {
    this.all = [];
    this.kinds.clear();
    this.offerOperations();
  }

  // `requests`: the oldest first.
  show(requests) {
    const known = new Set(this.all.map(({ number }) => number));
    const fresh = requests.filter(({ number }) => !known.has(number)).reverse();
    this.all = [...requests].reverse();
    const kinds = this.kinds.size;
    for (const { operation } of fresh) this.kinds.add(operation);
    if (this.kinds.size !== kinds) this.offerOperations();
    if (fresh.length && !this.paused) this.prepend(fresh);
  }

  offerOperations() {
    const chosen = this.operations.value;
    const option = (value, text) => make("option", { value, selected: value === chosen }, text);
    this.operations.replaceChildren(
      option("", word("allOperations")),
      ...[...this.kinds].sort().map((kind) => option(kind, operationName(kind))),
    );
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
    const kept = new Set(this.wanted(this.all).map(({ number }) => String(number)));
    for (const shown of [...this.body.children]) {
      if (!kept.has(shown.dataset.number)) shown.remove();
    }
    this.body.prepend(...this.wanted(fresh).map(row));
    this.showEmpty(kept.size);
  }

  draw() {
    const shown = this.wanted(this.all);
    this.showEmpty(shown.length);
    this.body.replaceChildren(...shown.map(row));
  }

  showEmpty(shown) {
    this.empty.hidden = shown > 0;
    this.empty.textContent = word(this.all.length ? "noneMatch" : "noRequests");
  }

  wanted(requests) {
    const text = this.filter.value.trim().toLowerCase();
    const operation = this.operations.value;
    return requests.filter((request) => (!this.onlyErrors.checked || request.code >= 400)
      && (!operation || request.operation === operation)
      && (!text || searchable(request).includes(text)));
  }
}

function searchable({ device_uuid: uuid, who, code, outcome, detail, transport }) {
  return [uuid, uuid && deviceName(uuid), who, code, outcome, detail, transport]
    .filter(Boolean).join(" ").toLowerCase();
}

function operationName(operation) {
  return wordOrNull(`operation_${operation}`) || operation;
}

function row(request) {
  const { operation, transport, who } = request;
  return make("tr", { role: "row", "data-number": request.number },
    cell("time", clock(request.at)),
    cell("operation", operationName(operation), ...small(operation)),
    cell("device", ...device(request.device_uuid)),
    cell("who", transport.toUpperCase(), ...small(asker(transport, who))),
    cell("result", ...outcome(request)),
    cell("took number", milliseconds(request.ms)));
}

function small(text) {
  return text ? [make("small", {}, text)] : [];
}

function asker(transport, who) {
  const prefix = `${transport}:`;
  const name = who.startsWith(prefix) ? who.slice(prefix.length) : who;
  return name === transport ? "" : name;
}

function outcome({ code, outcome: error, detail }) {
  const chip = make("span", { class: `code ${codeLevel(code)}` }, String(code));
  if (code < 400) return [chip, ` ${word("done")}`];
  return [chip, ` ${detail || error}`, ...small(detail && error)];
}

function cell(kind, ...content) {
  return make("td", { role: "cell", class: kind }, ...content);
}

function device(uuid) {
  if (uuid === null) return [];
  const name = deviceName(uuid);
  const label = word("showDevice", { uuid: name ? `${name} ${uuid}` : uuid });
  const link = make("a", { href: deviceLink(uuid), title: uuid, "aria-label": label }, name || uuid);
  return name ? [link, make("small", {}, uuid)] : [link];
}

// Names that were learnt after a row was made.
export function nameRows() {
  for (const link of byId("requests").querySelectorAll("td.device a")) {
    const name = deviceName(link.title);
    if (name && link.textContent !== name) {
      link.textContent = name;
      link.setAttribute("aria-label", word("showDevice", { uuid: `${name} ${link.title}` }));
      link.after(make("small", {}, link.title));
    }
  }
}

export function codeLevel(code) {
  if (code >= 500) return "bad";
  return code >= 400 ? "warn" : "good";
}
