// Ports and presets to act upon, and in words what became of what was sent last.
//
// Boards do not report their ports, so a port shows what was last sent from this page, and nothing
// before: neither on nor off is claimed.

import { control, preset } from "./bridge.js";
import { make } from "./dom.js";
import { portKind, portName } from "./names.js";
import { codeLevel } from "./requests.js";
import { clock, milliseconds, span, word, wordOrNull } from "./words.js";

const SLIDERS = {
  servo: { max: 180, unit: "°" },
  pwm: { max: 100, unit: "%" },
};
// By device and port or preset: { fields, at, reply }.
const sent = new Map();

export function forgetSent() {
  sent.clear();
}

export function portControl(uuid, port) {
  const id = `${port.port_type}-${port.port_id}`;
  const key = `${uuid}/${id}`;
  const outcome = outcomePlace();
  const { unit } = SLIDERS[port.port_type] || { unit: "" };
  const words = (body, failed, fields) => portWords(body, failed, fields, unit);
  const title = make("span", { class: "port-title", id: `port-${id}` },
    make("span", { class: "port-name" }, portName(port)),
    make("span", { class: "port-kind" }, portKind(port)));
  const act = async (fields) => {
    outcome.replaceChildren(make("p", { class: "waiting" }, word("sending")));
    const reply = await control({
      device_uuid: uuid, port_type: port.port_type, port_id: port.port_id, ...fields,
    });
    const before = sent.get(key);
    const done = reply !== null && reply.body.code === 200;
    sent.set(key, {
      fields, reply, at: Date.now() / 1000, state: done ? fields : before && before.state,
    });
    outcome.replaceChildren(...told(sent.get(key), words));
    return done;
  };
  const known = sent.get(key);
  if (known) outcome.replaceChildren(...told(known, words));
  const state = known && known.state;
  const handle = port.port_type in SLIDERS
    ? slider(port.port_type, id, state, act) : toggle(id, state, act);
  return make("div", { class: `port ${port.port_type}` }, title, handle, outcome);
}

export function presetControl(uuid, { preset_key: presetKey, name, type, total_seconds: seconds }) {
  const key = `${uuid}/preset/${presetKey}`;
  const outcome = outcomePlace();
  const duration = seconds > 0 ? ` · ${span(seconds)}` : "";
  const kind = (wordOrNull(`preset_${type}`) || type) + duration;
  const title = make("span", { class: "port-title" },
    make("span", { class: "port-name" }, name || presetKey),
    make("span", { class: "port-kind" }, kind));
  const button = make("button", {
    type: "button", "aria-label": `${word("run")} ${name || presetKey}`,
  }, word("run"));
  let running = false;
  button.addEventListener("click", async () => {
    if (running) return;
    running = true;
    // Not `disabled`, which would take the focus from whoever uses the keyboard.
    button.setAttribute("aria-disabled", "true");
    outcome.replaceChildren(make("p", { class: "waiting" }, word("running")));
    const reply = await preset({ device_uuid: uuid, preset_key: presetKey });
    sent.set(key, { reply, at: Date.now() / 1000 });
    outcome.replaceChildren(...told(sent.get(key), presetWords));
    button.removeAttribute("aria-disabled");
    running = false;
  });
  if (sent.has(key)) outcome.replaceChildren(...told(sent.get(key), presetWords));
  return make("div", { class: "port preset" }, title, button, outcome);
}

function toggle(id, state, act) {
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
  show(state && state.action);
  return group;
}

function slider(kind, id, state, act) {
  const { max, unit } = SLIDERS[kind];
  const range = make("input", {
    type: "range", min: 0, max, value: state ? state.value : max / 2,
    "aria-labelledby": `port-${id}`,
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

// ---- outcomes ----------------------------------------------------------------------------------

function outcomePlace() {
  return make("div", { class: "outcome", "aria-live": "polite" });
}

// A sentence, and the reply as it came to unfold.
function told({ fields, reply, at }, words) {
  if (reply === null) return [make("p", { class: "fault" }, word("unreachable"))];
  const { body, ms } = reply;
  const failed = body.code !== 200 || (body.data && body.data.success === false);
  return [make("details", { class: failed ? "refusal" : "success" },
    make("summary", {},
      make("span", { class: "mark-of" }, failed ? "✕" : "✓"),
      make("span", { class: "says" }, words(body, failed, fields)),
      make("span", { class: "took" }, clock(at))),
    make("p", { class: "took" },
      make("span", { class: `code ${codeLevel(body.code)}` }, String(body.code)),
      ` · ${milliseconds(ms)}`),
    make("pre", {}, JSON.stringify(body, null, 2)))];
}

function portWords(body, failed, { action, value }, unit) {
  const state = action === "set" ? `${value}${unit}` : word(action);
  if (failed) return word("notDone", { state, detail: body.detail || body.msg });
  return word(body.data.online ? "portDone" : "portDoneOffline", { state });
}

function presetWords({ detail, msg, data }, failed) {
  if (!data) return word("presetNotRun", { detail: detail || msg });
  const said = [data.message || msg, ...(data.errors || [])].join(" · ");
  return failed ? word("presetNotRun", { detail: said }) : said;
}
