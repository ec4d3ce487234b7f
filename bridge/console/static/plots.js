// Three small plots of the last five minutes, drawn as SVG at the size they have on the screen.

import { make, makeSvg } from "./dom.js";
import { clock, count, milliseconds, word } from "./words.js";

const WINDOW = 300;
const HEIGHT = 96;
const TOP = 8;
const FLOOR = HEIGHT - 18;
const QUIET = { requests: 0, refused: 0, failed: 0, p50_ms: null, p99_ms: null };

// A kind of plot: {
//   title, unit: names of words
//   headline(latest second, window) -> text
//   notes(aggregate) -> [{ text, swatch? }]: of the window, or of the second pointed at
//   scale(seconds) -> { y(value), ticks: [{ value, label }] }
//   draw(plot, seconds) -> [elements]
// }
class Plot {
  constructor(card, kind) {
    this.kind = kind;
    this.seconds = new Map();
    this.last = 0;
    this.time = 0;
    this.window = null;
    this.pointed = null;
    this.title = make("h2");
    this.figure = make("span", { class: "figure" });
    this.unit = make("span", { class: "unit" });
    this.note = make("p", { class: "note" });
    this.svg = makeSvg("svg", { role: "img", height: HEIGHT, width: "100%" });
    card.replaceChildren(
      this.title,
      make("p", { class: "headline" }, this.figure, this.unit),
      this.svg,
      this.note,
    );
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  show({ seconds, last, time, window }) {
    Object.assign(this, { seconds, last, time, window });
    this.draw();
  }

  point(event) {
    const width = this.svg.clientWidth;
    const share = event === null ? null : event.offsetX / width;
    this.pointed = share === null ? null : Math.round((share - 1) * (WINDOW - 1));
    this.draw();
  }

  x(second) {
    return ((second - this.last) / (WINDOW - 1) + 1) * (this.width - 2) + 1;
  }

  draw() {
    if (this.window === null) return;
    const { kind } = this;
    this.width = Math.max(120, this.svg.clientWidth);
    this.title.textContent = word(kind.title);
    this.figure.textContent = kind.headline(this.seconds.get(this.last), this.window);
    this.unit.textContent = word(kind.unit);
    const all = [...this.seconds.values()];
    this.scale = kind.scale(all);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.grid(), ...kind.draw(this, all), ...this.pointer());
    this.tell();
  }

  tell() {
    const pointed = this.pointed !== null;
    const there = pointed ? this.seconds.get(this.last + this.pointed) ?? QUIET : this.window;
    const notes = this.kind.notes(there, pointed).map(({ text, swatch }) => make(
      "span", { class: swatch && `swatch ${swatch}` }, text,
    ));
    const at = pointed ? [make("span", {}, clock(this.time - 1 + this.pointed))] : [];
    this.note.replaceChildren(...at, ...notes);
    const summary = this.kind.notes(this.window, false).map(({ text }) => text).join(", ");
    const headline = `${this.figure.textContent} ${this.unit.textContent}`;
    this.svg.setAttribute("aria-label", `${word(this.kind.title)}: ${headline}, ${summary}`);
  }

  grid() {
    const lines = this.scale.ticks.flatMap(({ value, label }) => {
      const y = this.scale.y(value);
      return [
        makeSvg("line", { class: "grid", x1: 0, x2: this.width, y1: y, y2: y }),
        makeSvg("text", { class: "tick", x: 0, y: y - 3 }, label),
      ];
    });
    return [
      ...lines,
      makeSvg("line", { class: "floor", x1: 0, x2: this.width, y1: FLOOR, y2: FLOOR }),
      makeSvg("text", { class: "tick", x: 0, y: HEIGHT - 4 }, word("minutesAgo")),
      makeSvg("text", { class: "tick end", x: this.width, y: HEIGHT - 4 }, word("now")),
    ];
  }

  pointer() {
    if (this.pointed === null) return [];
    const x = this.x(this.last + this.pointed);
    return [makeSvg("line", { class: "pointer", x1: x, x2: x, y1: 0, y2: FLOOR })];
  }
}

function linear(highest) {
  const top = niceTop(highest);
  return {
    y: (value) => FLOOR - (value / top) * (FLOOR - TOP),
    ticks: [{ value: top, label: count(top) }],
  };
}

function niceTop(highest) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, highest)));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= highest);
}

// Durations lie between a fraction of a millisecond and the minutes of a preset.
function decades(values) {
  const present = values.filter((value) => value > 0);
  const from = Math.floor(Math.log10(Math.min(1, ...present)));
  const to = Math.max(from + 2, Math.ceil(Math.log10(Math.max(1, ...present))));
  const step = to - from > 3 ? 2 : 1;
  const ticks = [];
  for (let decade = to; decade > from; decade -= step) {
    const label = decade >= 3 ? `${10 ** (decade - 3)} s` : `${10 ** decade} ms`;
    ticks.push({ value: 10 ** decade, label });
  }
  return {
    y: (value) => FLOOR
      - ((Math.log10(Math.max(value, 10 ** from)) - from) / (to - from)) * (FLOOR - TOP),
    ticks,
  };
}

const rate = {
  title: "rate",
  unit: "rateUnit",
  headline: (latest) => count(latest?.requests ?? 0),
  notes: ({ requests }, ofOneSecond) => [{
    text: ofOneSecond
      ? `${count(requests)} ${word("rateUnit")}` : word("rateNote", { count: count(requests) }),
  }],
  scale: (seconds) => linear(Math.max(1, ...seconds.map((second) => second.requests))),
  draw(plot) {
    const points = [];
    for (let second = plot.last - WINDOW + 1; second <= plot.last; second += 1) {
      const value = plot.seconds.get(second)?.requests ?? 0;
      points.push(`${plot.x(second).toFixed(1)} ${plot.scale.y(value).toFixed(1)}`);
    }
    const line = points.join("L");
    return [
      makeSvg("path", { class: "area", d: `M0 ${FLOOR}L${line}L${plot.width} ${FLOOR}Z` }),
      makeSvg("path", { class: "line", d: `M${line}` }),
    ];
  },
};

const errors = {
  title: "errors",
  unit: "errorsUnit",
  headline: (_, window) => count(window.refused + window.failed),
  notes: ({ refused, failed }) => [
    { text: `${word("refused")} ${count(refused)}`, swatch: "refused" },
    { text: `${word("failed")} ${count(failed)}`, swatch: "failed" },
  ],
  scale: (seconds) => linear(
    Math.max(1, ...seconds.map((second) => second.refused + second.failed)),
  ),
  draw(plot, seconds) {
    const width = Math.max(2, plot.width / WINDOW);
    const bar = (second, from, to) => {
      const x = Math.min(plot.x(second), plot.width - width).toFixed(1);
      const [low, high] = [plot.scale.y(from), plot.scale.y(to)];
      return `M${x} ${low.toFixed(1)}V${high.toFixed(1)}h${width.toFixed(1)}V${low.toFixed(1)}Z`;
    };
    const path = (from, to) => seconds
      .filter((second) => to(second) > from(second))
      .map((second) => bar(second.second, from(second), to(second))).join("");
    const failed = (second) => second.failed;
    const all = (second) => second.failed + second.refused;
    return [
      makeSvg("path", { class: "failed", d: path(() => 0, failed) }),
      makeSvg("path", { class: "refused", d: path(failed, all) }),
    ];
  },
};

const latency = {
  title: "latency",
  unit: "latencyUnit",
  headline: (_, window) => milliseconds(window.p50_ms),
  notes: (aggregate) => [
    { text: `p50 ${milliseconds(aggregate.p50_ms)}`, swatch: "p50" },
    { text: `p99 ${milliseconds(aggregate.p99_ms)}`, swatch: "p99" },
  ],
  scale: (seconds) => decades(seconds.flatMap((second) => [second.p50_ms, second.p99_ms])),
  draw(plot, seconds) {
    const path = (value) => {
      let previous = null;
      return seconds.map((second) => {
        const point = `${plot.x(second.second).toFixed(1)} ${plot.scale.y(value(second)).toFixed(1)}`;
        const joined = previous !== null && second.second - previous <= 3;
        previous = second.second;
        // A lone second is a dot: a line of no length with round ends.
        return joined ? `L${point}` : `M${point}h.01`;
      }).join("");
    };
    return [
      makeSvg("path", { class: "line p99", d: path((second) => second.p99_ms) }),
      makeSvg("path", { class: "line", d: path((second) => second.p50_ms) }),
    ];
  },
};

export class Plots {
  constructor(cards) {
    this.seconds = new Map();
    this.plots = [
      new Plot(cards.rate, rate), new Plot(cards.errors, errors), new Plot(cards.latency, latency),
    ];
  }

  forget() {
    this.seconds.clear();
  }

  show(snapshot) {
    this.seconds = new Map(snapshot.seconds.map((second) => [second.second, second]));
    this.snapshot = snapshot;
    this.draw();
  }

  draw() {
    if (!this.snapshot) return;
    const { second: last, time, window } = this.snapshot;
    for (const plot of this.plots) plot.show({ seconds: this.seconds, last, time, window });
  }
}
