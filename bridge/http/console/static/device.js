// A device's view: what it says now, and its ports and presets to act upon.
//
// Boards do not report their ports, so a switch shows what was last sent from here with success,
// and nothing before: neither on nor off is claimed.

import { control, preset, readDevice } from "./bridge.js";
import { byId, make } from "./dom.js";
import { codeLevel } from "./requests.js";
import { age, milliseconds, span, word } from "./words.js";

const KNOWN = "bridge-console-devices";
const KEPT_KNOWN = 8;
const REFRESH_MS = 10_000;
const SLIDERS = {
  servo: { max: 180, unit: "°" },
  pwm: { max: 100, unit: "%" },
};

export class DeviceView {
  constructor(place) {
    this.place = place;
    this.uuid = null;
    this.sent = new Map();
    this.asked = 0;
    offerKnown();
    setInterval(() => this.tellAges(), 1000);
    setInterval(() => {
      if (this.found && !document.hidden) this.refresh();
    }, REFRESH_MS);
  }

  forget() {
    this.asked += 1;
    this.uuid = this.found = null;
    this.place.replaceChildren();
  }

  async lookUp(uuid) {
    const asked = this.asked += 1;
    const reply = await readDevice(uuid);
    if (asked !== this.asked) return;
    if (uuid !== this.uuid) this.sent.clear();
    this.uuid = uuid;
    this.found = reply?.body.code === 200 ? reply.body.data : null;
    if (this.found) {
      remember(uuid);
      this.noteTime();
      this.draw();
    } else {
      this.place.replaceChildren(shownReply(reply));
    }
  }

  // Readings alone: what a person is doing with a slider or a reply stays as it is.
  async refresh() {
    const { asked, uuid } = this;
    const reply = await readDevice(uuid);
    if (asked !== this.asked || reply?.body.code !== 200) return;
    this.found = reply.body.data;
    this.noteTime();
    this.drawReadings();
  }

  noteTime() {
    this.readAt = performance.now();
  }

  draw() {
    if (!this.found) return;
    const { ports, presets } = this.found;
    const refresh = make("button", { type: "button", class: "quiet" }, word("refresh"));
    refresh.addEventListener("click", () => this.refresh());
    this.name = make("p", { class: "name" });
    this.badge = make("span");
    this.seen = make("span", { class: "seen" });
    this.readings = make("ul", { class: "readings" });
    this.place.replaceChildren(
      make("div", { class: "device-heading" }, this.name, this.badge, this.seen, refresh),
      make("h3", {}, word("readings")),
      this.readings,
      make("h3", {}, word("ports")),
      ports.length
        ? make("div", { class: "ports" }, ...ports.map((port) => this.port(port)))
        : make("p", { class: "empty" }, word("noPorts")),
      ...(presets.length
        ? [make("h3", {}, word("presets")),
          make("div", { class: "ports" }, ...presets.map((each) => this.preset(each)))]
        : []),
    );
    this.drawReadings();
  }

  drawReadings() {
    const { name, online, sensors, last_seen: lastSeen } = this.found;
    this.name.textContent = name;
    this.badge.className = `badge ${online ? "good" : "idle"}`;
    this.badge.textContent = word(online ? "online" : "offline");
    this.seen.textContent = lastSeen
      ? word("lastSeen", { time: lastSeen.replace("T", " ") }) : word("neverSeen");
    this.readings.replaceChildren(...(sensors.length
      ? sensors.map(reading)
      : [make("li", { class: "empty" }, word("noReadings"))]));
    this.tellAges();
  }

  tellAges() {
    if (!this.found) return;
    const since = (performance.now() - this.readAt) / 1000;
    for (const element of this.readings.querySelectorAll("[data-age]")) {
      element.textContent = age(Number(element.dataset.age) + since);
    }
  }

  port(port) {
    const id = `${port.port_type}-${port.port_id}`;
    const reply = replyPlace();
    const title = make("span", { class: "port-title", id: `port-${id}` },
      make("span", { class: "port-name" }, port.alias ?? port.name ?? id),
      make("span", { class: "port-kind" }, `${port.port_type} ${port.port_id}`));
    const act = async (fields) => {
      reply.replaceChildren(make("p", { class: "waiting" }, word("sending")));
      const answer = await control({
        device_uuid: this.uuid, port_type: port.port_type, port_id: port.port_id, ...fields,
      });
      reply.replaceChildren(shownReply(answer));
      if (answer?.body.code === 200) this.sent.set(id, fields);
      return answer?.body.code === 200;
    };
    const handle = port.port_type in SLIDERS
      ? slider(port.port_type, id, this.sent.get(id), act)
      : toggle(id, this.sent.get(id), act);
    return make("div", { class: `port ${port.port_type}` }, title, handle, reply);
  }

  preset({ preset_key: key, name, type, total_seconds: seconds }) {
    const reply = replyPlace();
    const duration = seconds > 0 ? ` · ${span(seconds)}` : "";
    const kind = (type === "sequence" ? word("sequence") : type) + duration;
    const title = make("span", { class: "port-title" },
      make("span", { class: "port-name" }, name),
      make("span", { class: "port-kind" }, kind));
    const button = make("button", { type: "button", "aria-label": `${word("run")} ${name}` },
      word("run"));
    button.addEventListener("click", async () => {
      button.disabled = true;
      reply.replaceChildren(make("p", { class: "waiting" }, word("running")));
      reply.replaceChildren(shownReply(await preset({ device_uuid: this.uuid, preset_key: key })));
      button.disabled = false;
    });
    return make("div", { class: "port preset" }, title, button, reply);
  }
}

function reading({ sensor_name: name, sensor_type: type, value, unit, age_seconds: seconds }) {
  return make("li", { class: "reading" },
    make("span", { class: "reading-name", title: type ?? "" }, name),
    make("span", { class: "reading-value" }, String(value),
      make("span", { class: "unit" }, unit)),
    seconds === null
      ? make("span", { class: "reading-age" }, word("noneYet"))
      : make("span", { class: "reading-age", "data-age": seconds }));
}

function toggle(id, sent, act) {
  const group = make("div", { class: "switch", role: "group", "aria-labelledby": `port-${id}` });
  const show = (action) => {
    for (const button of group.children) {
      button.setAttribute("aria-pressed", String(button.dataset.action === action));
    }
  };
  for (const action of ["off", "on"]) {
    const button = make("button", { type: "button", "data-action": action }, word(action));
    button.addEventListener("click", async () => {
      if (await act({ action })) show(action);
    });
    group.append(button);
  }
  show(sent?.action);
  return group;
}

function slider(kind, id, sent, act) {
  const { max, unit } = SLIDERS[kind];
  const range = make("input", {
    type: "range", min: 0, max, value: sent?.value ?? max / 2, "aria-labelledby": `port-${id}`,
  });
  const figure = make("output", {});
  const show = () => {
    figure.textContent = range.value + unit;
    range.setAttribute("aria-valuetext", figure.textContent);
  };
  const button = make("button", { type: "button", "aria-describedby": `port-${id}` }, word("send"));
  const send = () => act({ action: "set", value: Number(range.value) });
  // A pointer's release says what is wanted; arrow keys pass many values on the way to it.
  let byPointer = false;
  range.addEventListener("pointerdown", () => { byPointer = true; });
  range.addEventListener("keydown", () => { byPointer = false; });
  range.addEventListener("input", show);
  range.addEventListener("change", () => byPointer && send());
  button.addEventListener("click", send);
  show();
  return make("div", { class: "slider" }, range, figure, button);
}

function replyPlace() {
  return make("div", { class: "reply", "aria-live": "polite" });
}

// A reply as it came: its code and what it says, and the whole of it to unfold.
function shownReply(reply) {
  if (reply === null) {
    return make("p", { class: "fault" }, word("unreachable"));
  }
  const { body, ms } = reply;
  const failed = body.code !== 200 || body.data?.success === false;
  const level = failed ? codeLevel(Math.max(body.code, 400)) : "good";
  return make("details", { class: failed ? "refusal" : "success" },
    make("summary", {},
      make("span", { class: `code ${level}` }, String(body.code)),
      make("span", { class: "says" }, gist(body)),
      make("span", { class: "took" }, milliseconds(ms))),
    make("pre", {}, JSON.stringify(body, null, 2)));
}

function gist({ msg, detail, data }) {
  if (detail) return detail;
  if (data?.command) return JSON.stringify(data.command);
  if (!data?.message) return msg;
  return [data.message, ...(data.errors ?? [])].join(" · ");
}

function known() {
  try {
    const kept = JSON.parse(localStorage.getItem(KNOWN));
    return Array.isArray(kept) ? kept.filter((each) => typeof each === "string") : [];
  } catch {
    return [];
  }
}

function remember(uuid) {
  const kept = [uuid, ...known().filter((each) => each !== uuid)].slice(0, KEPT_KNOWN);
  localStorage.setItem(KNOWN, JSON.stringify(kept));
  offerKnown();
}

export function offerKnown() {
  byId("known").replaceChildren(...known().map((uuid) => make("option", { value: uuid })));
}
