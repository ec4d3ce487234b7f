// What is asked of the bridge: its operations, and snapshots of it.

const KEY = "bridge-console-key";
const SILENCE_MS = 1500;
const POLL_MS = 1000;
const PAGE = 100;

export function storedKey() {
  return sessionStorage.getItem(KEY);
}

export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers(more = {}) {
  const key = storedKey();
  return key ? { ...more, "X-API-Key": asHeader(key) } : more;
}

// fetch takes bytes as characters below 256; the bridge reads the bytes as UTF-8.
function asHeader(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

// The reply's body with its status and `ms` beside it; null when no reply came.
export function readDevice(uuid) {
  return ask(`api/devices/${encodeURIComponent(uuid)}`, { headers: headers() });
}

// What people call a device's sensors, by stored name; the usual names do if it can't be had.
export async function readSensorNames(uuid) {
  const parameters = new URLSearchParams({ device_uuid: uuid });
  const reply = await ask(`console/sensor-names?${parameters}`, { headers: headers() });
  return new Map(reply !== null && reply.status === 200 ? Object.entries(reply.body) : []);
}

export function listDevices({ query, room, cursor }) {
  const parameters = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of Object.entries({ query, room, cursor })) {
    if (value) parameters.set(name, value);
  }
  return ask(`api/devices?${parameters}`, { headers: headers() });
}

export function control(fields) {
  return command("api/control", fields);
}

export function preset(fields) {
  return command("api/preset", fields);
}

function command(path, fields) {
  return ask(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", "Idempotency-Key": freshId() }),
    body: JSON.stringify(fields),
  });
}

async function ask(path, options) {
  const begun = performance.now();
  try {
    const response = await fetch(path, { cache: "no-store", ...options });
    const body = await response.json();
    return { body, status: response.status, ms: performance.now() - begun };
  } catch {
    return null;
  }
}

// crypto.randomUUID is there in secure contexts only, and schools use plain http.
function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Snapshots of the bridge: one a second, none while nobody looks.
//   on.snapshot(snapshot): what the bridge says
//   on.refused(): the key is missing or wrong; follow() again with another
//   on.lost(detail): no answer; `detail` is what the bridge says of it, if it says anything
export function follow(on) {
  let stopped = false;
  let timer = null;

  async function poll() {
    clearTimeout(timer);
    if (document.hidden) return;
    const { snapshot, refused, detail } = await latest();
    if (stopped) return;
    if (refused) {
      stop();
      on.refused();
      return;
    }
    if (snapshot) on.snapshot(snapshot);
    else on.lost(detail);
    timer = setTimeout(poll, POLL_MS);
  }

  function stop() {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", poll);
  }

  document.addEventListener("visibilitychange", poll);
  poll();
  return stop;
}

async function latest() {
  const controller = new AbortController();
  const watchdog = setTimeout(() => controller.abort(), SILENCE_MS);
  try {
    const response = await fetch("console/snapshot", {
      headers: headers(), cache: "no-store", signal: controller.signal,
    });
    const body = await response.json();
    if (response.ok) return { snapshot: body };
    return { refused: response.status === 401 || response.status === 403, detail: body.detail };
  } catch {
    return {};
  } finally {
    clearTimeout(watchdog);
  }
}
