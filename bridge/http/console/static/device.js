// A device: what it says and how old that is, and what can be done with it.

import { readDevice, readSensorNames } from "./bridge.js";
import { forgetSent, portControl, presetControl } from "./controls.js";
import { byId, make } from "./dom.js";
import { noteDevices, readingWords, sensorName, unitName } from "./names.js";
import { forgetSeen, noteReadings, spark } from "./sparks.js";
import { age, word } from "./words.js";

const KNOWN = "bridge-console-devices";
const KEPT_KNOWN = 8;
const REFRESH_MS = 5000;
const OLD_SECONDS = 600;

export class DeviceView {
  constructor(place) {
    this.place = place;
    this.asked = 0;
    this.clear();
    offerKnown();
    setInterval(() => this.tellAges(), 1000);
    setInterval(() => {
      if (this.found && !document.hidden) this.refresh();
    }, REFRESH_MS);
  }

  clear() {
    this.asked += 1;
    this.uuid = this.found = this.failure = null;
    this.draw();
  }

  forget() {
    forgetSent();
    forgetSeen();
    this.clear();
  }

  async lookUp(uuid) {
    const asked = this.asked += 1;
    const [reply, names] = await Promise.all([readDevice(uuid), readSensorNames(uuid)]);
    if (asked !== this.asked) return;
    this.names = names;
    this.uuid = uuid;
    this.found = reply !== null && reply.body.code === 200 ? reply.body.data : null;
    this.failure = this.found ? null : { reply };
    if (this.found) {
      remember(uuid);
      this.note();
    }
    this.draw();
  }

  // Readings alone: what a person is doing with a slider or an outcome stays as it is.
  async refresh() {
    const { asked, uuid } = this;
    const reply = await readDevice(uuid);
    if (asked !== this.asked || reply === null || reply.body.code !== 200) return;
    this.found = reply.body.data;
    this.note();
    this.drawReadings();
  }

  note() {
    this.readAt = performance.now();
    noteDevices([this.found]);
    noteReadings(this.uuid, this.found.sensors);
  }

  draw() {
    if (this.failure) this.place.replaceChildren(failed(this.failure.reply));
    else if (this.found) this.drawDevice();
    else this.place.replaceChildren(make("p", { class: "empty" }, word("chooseDevice")));
  }

  drawDevice() {
    const { ports, presets } = this.found;
    const refresh = make("button", { type: "button", class: "quiet" }, word("refresh"));
    refresh.addEventListener("click", () => this.refresh());
    this.name = make("p", { class: "name" });
    this.presence = make("p", { class: "presence" });
    this.warning = make("p", { class: "warning", role: "status" });
    this.readings = make("ul", { class: "readings" });
    this.place.replaceChildren(
      make("div", { class: "device-heading" }, this.name, refresh, this.presence),
      this.warning,
      this.readings,
      make("h3", {}, word("ports")),
      ports.length
        ? make("div", { class: "ports" }, ...ports.map((port) => portControl(this.uuid, port)))
        : make("p", { class: "empty" }, word("noPorts")),
      ...(presets.length
        ? [make("h3", {}, word("presets")),
          make("div", { class: "ports" },
            ...presets.map((each) => presetControl(this.uuid, each)))]
        : []),
    );
    this.drawReadings();
  }

  drawReadings() {
    const { name, online, sensors, device_uuid: uuid, last_seen: lastSeen } = this.found;
    this.name.textContent = name || uuid;
    this.presence.replaceChildren(
      make("span", { class: `badge ${online ? "good" : "idle"}` },
        word(online ? "online" : "offline")),
      ` ${word("recorded")} · ${lastSeen
        ? word("lastSeen", { time: lastSeen.replace("T", " ") }) : word("neverSeen")}`,
      make("span", { class: "uuid" }, uuid),
    );
    this.readings.replaceChildren(...(sensors.length
      ? sensors.map((sensor) => reading(this.uuid, sensor, this.names))
      : [make("li", { class: "empty" }, word("noReadings"))]));
    this.tellAges();
  }

  tellAges() {
    if (!this.found) return;
    const since = (performance.now() - this.readAt) / 1000;
    const old = [];
    for (const element of this.readings.querySelectorAll("[data-age]")) {
      const seconds = Number(element.dataset.age) + since;
      element.textContent = age(seconds);
      const isOld = seconds > OLD_SECONDS;
      element.parentElement.classList.toggle("old", isOld);
      if (isOld) old.push(element.dataset.name);
    }
    const text = old.length ? word("oldData", { sensors: old.join(word("comma")) }) : "";
    // Said again only when it changes, or readers of the screen would hear it every second.
    if (this.warning.textContent !== text) this.warning.textContent = text;
    this.warning.hidden = !text;
  }
}

function failed(reply) {
  if (reply === null) return make("p", { class: "fault", role: "alert" }, word("unreachable"));
  const { code, detail, msg } = reply.body;
  return make("p", { class: "fault", role: "alert" },
    make("span", { class: "code" }, String(code)), ` ${detail || msg}`);
}

function reading(uuid, sensor, names) {
  const { sensor_name: stored, sensor_type: type, age_seconds: seconds } = sensor;
  const unit = unitName(sensor.unit);
  const name = sensorName(stored, names);
  const { said, number } = readingWords(sensor);
  const line = spark(uuid, stored);
  const beside = number === null ? unit : String(number);
  return make("li", { class: "reading" },
    make("span", { class: "reading-name" }, name),
    make("span", { class: "reading-value" }, said,
      ...(beside ? [make("span", { class: "unit" }, beside)] : [])),
    seconds === null
      ? make("span", { class: "reading-age" }, word("noTime"))
      : make("span", { class: "reading-age", "data-age": seconds, "data-name": name }),
    ...(line ? [line.line, make("span", { class: "reading-range" },
      word("seenRange", {
        range: line.range, count: line.count, unit: number === null ? unit : "",
      }))] : []),
    make("span", { class: "reading-key" }, type ? `${stored} · ${type}` : stored));
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

function offerKnown() {
  byId("known").replaceChildren(...known().map((uuid) => make("option", { value: uuid })));
}
