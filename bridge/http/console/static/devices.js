// The list of devices: found by name or room, a page at a time as the bridge gives them.

import { listDevices } from "./bridge.js";
import { byId, make } from "./dom.js";
import { deviceLink, noteDevices } from "./names.js";
import { word } from "./words.js";

const TYPING_MS = 250;
const REFRESH_MS = 30_000;

export class DeviceList {
  constructor() {
    this.rooms = new Set();
    this.asked = 0;
    this.devices = [];
    let timer = null;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.load(), TYPING_MS);
    });
    byId("room").addEventListener("change", () => this.load());
    byId("more").addEventListener("click", () => this.load(this.cursor));
    setInterval(() => {
      // A further page is not taken away from whoever reads it.
      if (this.answered && !this.further && !document.hidden) this.load();
    }, REFRESH_MS);
  }

  forget() {
    this.asked += 1;
    this.rooms.clear();
    this.show([], null, "");
    this.answered = false;
  }

  async load(cursor = null) {
    const asked = this.asked += 1;
    const reply = await listDevices({
      query: byId("search").value.trim(), room: byId("room").value, cursor,
    });
    if (asked !== this.asked) return;
    this.answered = reply !== null && reply.body.code === 200;
    this.further = cursor !== null;
    if (!this.answered) {
      this.show([], null, (reply && reply.body.detail) || word("unreachable"));
      return;
    }
    const { devices, next_cursor: next } = reply.body.data;
    noteDevices(devices);
    for (const { room } of devices) if (room) this.rooms.add(room);
    const all = cursor === null ? devices : [...this.devices, ...devices];
    this.show(all, next, all.length ? "" : word("noDevices"));
  }

  show(devices, cursor, note) {
    Object.assign(this, { devices, cursor, note });
    this.draw();
  }

  draw() {
    const chosen = byId("room").value;
    const option = (value, text) => make("option", { value, selected: value === chosen }, text);
    const rooms = [...this.rooms].sort((one, other) => one.localeCompare(other));
    byId("room").replaceChildren(
      option("", word("allRooms")), ...rooms.map((room) => option(room, room)),
    );
    byId("room").hidden = rooms.length === 0;
    byId("search").hidden = this.answered === false;
    byId("devices").replaceChildren(...this.devices.map(entry));
    byId("devices-note").textContent = this.note || "";
    byId("devices-note").hidden = !this.note;
    byId("more").hidden = !this.cursor;
    this.mark(this.chosen);
  }

  mark(uuid) {
    this.chosen = uuid;
    for (const link of byId("devices").querySelectorAll("a")) {
      if (link.dataset.uuid === uuid) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}

function entry({ device_uuid: uuid, name, online, room, group, product }) {
  const about = [room, group, product].filter(Boolean).join(" · ");
  return make("li", {},
    make("a", { href: deviceLink(uuid), "data-uuid": uuid },
      make("span", { class: `dot ${online ? "good" : "off"}` }),
      make("span", { class: "entry-name" }, name || uuid),
      make("span", { class: "entry-state" }, word(online ? "online" : "offline")),
      make("span", { class: "entry-about" }, about || uuid)));
}
