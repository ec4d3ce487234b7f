// What things are called: devices by their names, sensors by those that people gave them.

import { word, wordOrNull } from "./words.js";

const LINK = "#device/";
const devices = new Map();

export function deviceLink(uuid) {
  return LINK + encodeURIComponent(uuid);
}

// The device that the page's address names; null if none.
export function linkedDevice() {
  if (!location.hash.startsWith(LINK)) return null;
  try {
    return decodeURIComponent(location.hash.slice(LINK.length)) || null;
  } catch {
    return null;
  }
}

export function noteDevices(found) {
  for (const { device_uuid: uuid, name } of found) if (name) devices.set(uuid, name);
}

export function deviceName(uuid) {
  return devices.get(uuid) || null;
}

export function forgetDevices() {
  devices.clear();
}

// `given`: the names that people gave the device's sensors, by stored name.
export function sensorName(stored, given) {
  return given.get(stored) || wordOrNull(`sensor_${stored.toLowerCase()}`) || stored;
}

// Units are as the platform has them; a Chinese one is translated.
export function unitName(unit) {
  return wordOrNull(`unit_${unit}`) || unit;
}

// The value as people say it, and beside it the number that programs get if that is another.
export function readingWords({ value, raw_value: raw, sensor_name: stored }) {
  const truth = value === 1 || value === 0;
  const isRain = /^rain(_sensor)?$/i.test(stored);
  if (truth && isRain) return { said: word(value ? "raining" : "notRaining"), number: value };
  if (truth && /^(true|false)$/i.test(String(raw).trim())) {
    return { said: word(value ? "yes" : "no"), number: value };
  }
  return { said: String(value), number: null };
}

export function portName({ port_type: type, port_id: id, name, alias }) {
  return alias || name || `${word(`port_${type}`)} ${id}`;
}

export function portKind({ port_type: type, port_id: id }) {
  return `${word(`port_${type}`)} ${id} · ${type}`;
}
