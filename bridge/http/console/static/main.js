// The page: what is shown when, in which language and theme.

import { follow, storeKey, storedKey } from "./bridge.js";
import { DeviceView } from "./device.js";
import { DeviceList } from "./devices.js";
import { byId, make } from "./dom.js";
import { deviceLink, forgetDevices, linkedDevice } from "./names.js";
import { Plots } from "./plots.js";
import { nameRows, Requests } from "./requests.js";
import { count, currentLanguage, span, speak, word } from "./words.js";

const LANGUAGE = "bridge-console-language";
const THEME = "bridge-console-theme";
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");

let stop = null;
let latest = null;
let lost = false;

const plots = new Plots({
  rate: byId("plot-rate"), errors: byId("plot-errors"), latency: byId("plot-latency"),
});
const device = new DeviceView(byId("device"));
const devices = new DeviceList();
const requests = new Requests({
  body: byId("requests"),
  empty: byId("no-requests"),
  pause: byId("pause"),
  onlyErrors: byId("only-errors"),
  operations: byId("operations"),
  filter: byId("filter"),
});

// ---- snapshots of the bridge ---------------------------------------------------------------------

function connect() {
  stop?.();
  stop = follow({
    snapshot(snapshot) {
      byId("hail").hidden = true;
      byId("key-form").hidden = true;
      byId("peers").hidden = false;
      if (byId("all").hidden) {
        byId("all").hidden = false;
        devices.load();
        openLinked();
      }
      byId("forget-key").hidden = !storedKey();
      show(snapshot);
    },
    refused: askForKey,
    lost(detail) {
      lost = true;
      showState();
      byId("hail").textContent = detail ?? word("noAnswer");
    },
  });
}

function show(snapshot) {
  latest = snapshot;
  lost = false;
  plots.show(snapshot);
  requests.show(snapshot.requests);
  byId("devices-hidden").hidden = !snapshot.devices_hidden;
  nameRows();
  showState();
}

function showState() {
  if (!latest) return;
  const { health, worker, workers } = latest;
  showPeer("mqtt", !lost && health.mqtt);
  showPeer("database", !lost && health.database);
  byId("facts").textContent = lost ? "" : [
    `${word("inFlight")} ${count(health.in_flight)}`,
    `${word("uptime")} ${span(Math.floor(health.uptime_seconds))}`,
  ].join(" · ");
  byId("build").textContent = health.version;
  const name = verdict(health);
  const place = byId("verdict");
  // Said again only when it changes, or readers of the screen would hear it every second.
  if (place.textContent !== word(name)) place.textContent = word(name);
  place.className = `verdict ${name === "allWell" ? "good" : "bad"}`;
  byId("worker").hidden = workers === 1;
  byId("worker").textContent = word("workerNote", { worker, workers });
}

function verdict(health) {
  if (lost) return "bridgeGone";
  if (health.mqtt && health.database) return "allWell";
  if (health.database) return "brokerGone";
  return health.mqtt ? "databaseGone" : "bothGone";
}

function showPeer(peer, connected) {
  const level = lost ? "idle" : connected ? "good" : "bad";
  const text = lost ? word("noneYet") : word(connected ? "connected" : "disconnected");
  byId(`peer-${peer}`).querySelector("dd").replaceChildren(
    make("span", { class: `dot ${level}` }), text,
  );
}

// ---- the key -----------------------------------------------------------------------------------

function askForKey() {
  const tried = storedKey();
  storeKey(null);
  latest = null;
  plots.forget();
  requests.forget();
  requests.draw();
  device.forget();
  devices.forget();
  forgetDevices();
  byId("build").textContent = "";
  byId("all").hidden = byId("hail").hidden = byId("peers").hidden = true;
  byId("forget-key").hidden = true;
  byId("key-form").hidden = false;
  byId("key-fault").textContent = tried ? word("keyWrong") : "";
  byId("key").value = "";
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  storeKey(byId("key").value.trim());
  connect();
});

byId("forget-key").addEventListener("click", () => {
  storeKey(null);
  history.replaceState(null, "", location.pathname + location.search);
  connect();
});

// ---- the device --------------------------------------------------------------------------------

byId("device-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const uuid = byId("uuid").value.trim();
  if (!uuid) return;
  if (linkedDevice() === uuid) openLinked();
  else location.hash = deviceLink(uuid);
});

async function openLinked() {
  const uuid = linkedDevice();
  devices.mark(uuid);
  if (uuid === null) {
    device.clear();
    return;
  }
  await device.lookUp(uuid);
  nameRows();
}

addEventListener("hashchange", async () => {
  if (byId("all").hidden) return;
  await openLinked();
  // On a phone the device stands below the list.
  const title = byId("device-title");
  title.focus({ preventScroll: true });
  title.scrollIntoView({ block: "nearest" });
  if (innerWidth <= 900) title.scrollIntoView();
});

// ---- language and theme ------------------------------------------------------------------------

function setLanguage(language) {
  speak(language);
  byId("language").textContent = word("otherLanguage");
  byId("language").setAttribute("aria-label", word("otherLanguageLabel"));
  byId("language").lang = language === "zh" ? "en" : "zh-CN";
  showTheme();
  showState();
  plots.draw();
  requests.offerOperations();
  requests.draw();
  devices.draw();
  device.draw();
}

byId("language").addEventListener("click", () => {
  const other = currentLanguage() === "zh" ? "en" : "zh";
  localStorage.setItem(LANGUAGE, other);
  setLanguage(other);
});

// Only a choice against the system's is kept: back with it, the page follows the system again.
function isDark() {
  const chosen = localStorage.getItem(THEME);
  return chosen ? chosen === "dark" : systemDark.matches;
}

function showTheme() {
  const dark = isDark();
  root.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = word(dark ? "toLight" : "toDark");
}

byId("theme").addEventListener("click", () => {
  const dark = !isDark();
  if (dark === systemDark.matches) localStorage.removeItem(THEME);
  else localStorage.setItem(THEME, dark ? "dark" : "light");
  showTheme();
});

systemDark.addEventListener("change", showTheme);
setLanguage(localStorage.getItem(LANGUAGE) ?? root.lang);
byId("hail").textContent = word("connecting");
connect();
