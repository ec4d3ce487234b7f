// What is asked of the bridge: its operations, and its stream of events.

const KEY = "bridge-console-key";
const SILENCE_MS = 2500;
const RETRY_MS = 1000;

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

// The reply's body with `ms` beside it; null when no reply came.
export function readDevice(uuid) {
  return ask(`api/devices/${encodeURIComponent(uuid)}`, { headers: headers() });
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
    return { body, ms: performance.now() - begun };
  } catch {
    return null;
  }
}

// crypto.randomUUID is there in secure contexts only, and schools use plain http.
function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The stream of events: opened anew when it breaks or falls silent, closed while nobody looks.
//   on.history(event), on.second(event): what the bridge tells
//   on.refused(): the key is missing or wrong; follow() again with another
//   on.lost(detail): no stream; `detail` is what the bridge says of it, if it says anything
export function follow(on) {
  let controller = null;
  let stopped = false;

  async function run() {
    while (!stopped) {
      if (document.hidden) {
        await becomingVisible();
        continue;
      }
      const { refused, detail } = await attempt();
      if (refused) return;
      if (!stopped && !document.hidden) {
        on.lost(detail);
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  async function attempt() {
    controller = new AbortController();
    const watchdog = new Watchdog(() => controller.abort());
    try {
      const response = await fetch("console/events", {
        headers: headers(), cache: "no-store", signal: controller.signal,
      });
      if (response.status === 401 || response.status === 403) {
        on.refused();
        return { refused: true };
      }
      if (!response.ok) return { detail: (await response.json()).detail };
      for await (const { event, data } of eventsOf(response.body)) {
        if (stopped) return {};
        watchdog.reset();
        on[event]?.(data);
      }
    } catch {
      // Broken off, by the network or by ourselves.
    } finally {
      watchdog.stop();
    }
    return {};
  }

  function onVisibility() {
    if (document.hidden) controller?.abort();
  }

  document.addEventListener("visibilitychange", onVisibility);
  run();
  return function stop() {
    stopped = true;
    document.removeEventListener("visibilitychange", onVisibility);
    controller?.abort();
  };
}

function becomingVisible() {
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
  });
}

class Watchdog {
  constructor(bark) {
    this.bark = bark;
    this.reset();
  }

  reset() {
    this.stop();
    this.timer = setTimeout(this.bark, SILENCE_MS);
  }

  stop() {
    clearTimeout(this.timer);
  }
}

// Server-sent events as the bridge writes them: one `event` and one `data` line each.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
