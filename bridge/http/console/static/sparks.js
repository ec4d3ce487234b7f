// What this page has seen of each sensor while it is open, as small lines.

import { makeSvg } from "./dom.js";

const KEPT = 240;
const WIDTH = 120;
const HEIGHT = 26;
const seen = new Map();

export function forgetSeen() {
  seen.clear();
}

export function noteReadings(uuid, sensors) {
  for (const { sensor_name: sensor, value, timestamp } of sensors) {
    if (typeof value !== "number") continue;
    const key = `${uuid}/${sensor}`;
    const points = seen.get(key) || [];
    const last = points[points.length - 1];
    // The same reading, read again.
    if (last && last.timestamp === timestamp && last.value === value) continue;
    points.push({ at: Date.now(), timestamp, value });
    if (points.length > KEPT) points.shift();
    seen.set(key, points);
  }
}

// The line, its range and how many readings it shows; null while there is only one.
export function spark(uuid, sensor) {
  const points = seen.get(`${uuid}/${sensor}`) || [];
  if (points.length < 2) return null;
  const values = points.map(({ value }) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const begun = points[0].at;
  const lasted = Math.max(1, points[points.length - 1].at - begun);
  const place = ({ at, value }) => {
    const x = 2 + ((at - begun) / lasted) * (WIDTH - 4);
    const share = high === low ? 0.5 : (value - low) / (high - low);
    return `${x.toFixed(1)} ${(HEIGHT - 3 - share * (HEIGHT - 6)).toFixed(1)}`;
  };
  const line = makeSvg("svg", {
    class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    "aria-hidden": "true",
  }, makeSvg("path", { class: "line", d: `M${points.map(place).join("L")}` }));
  return { line, low, high, count: points.length };
}
