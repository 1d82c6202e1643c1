// Heat map of layers x experts, with ranks marked; pause and scrub through the last minutes.

import { watch } from "./api.js";
import { button, el, field, number, svg, text, visible } from "./dom.js";

const SCALE = 32; // a cell of this value has the layer's mean load
const FRAMES = 300;

export class Experts {
  constructor() {
    this.frames = [];
    this.paused = false;
    this.cursor = [0, 0];
    this.state = el("span.muted", { role: "status" });
    this.select = el("select", { onchange: () => this.watchGroup(this.select.value) });
    this.canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": "Load of the experts", onmousemove: (event) => this.point(event), onkeydown: (event) => this.move(event) });
    this.reading = el("p.reading", { role: "status" }, "Point at a cell, or use the arrow keys.");
    this.legend = el("canvas", { width: 180, height: 1, "aria-hidden": "true" });
    this.pause = button("Pause", () => this.setPaused(!this.paused), { "aria-pressed": "false" });
    this.range = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Time", oninput: () => { this.setPaused(true); this.draw(); } });
    this.when = el("span.muted", {}, "now");
    this.plot = svg("svg", { class: "plot", viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": "Imbalance over time" });
    this.latest = el("p.muted");
    this.hot = el("tbody");
    this.moved = el("p.muted");
    this.none = el("p.muted", {}, "Loading…");
    this.figures = el("div.figures", { hidden: true }, el("div.heat", {}, this.canvas), this.reading, el("div.scrub", {}, this.pause, this.range, this.when));
    const head = ["Layer", "Expert", "Ranks", "Tokens", "Times mean"];
    this.element = el("section.view", { "aria-label": "Experts" }, el("div.bar", {}, el("h1", {}, "Experts"), this.state),
      el("div.card", {}, el("div.two", {}, field("Group", this.select), el("div.scale", {}, "0", this.legend, "4 times the mean or more")), this.none, this.figures),
      el("div.two", {}, el("section.card", {}, el("h2", {}, "Imbalance: busiest / mean"), this.plot, this.latest),
        el("section.card", {}, el("h2", {}, "Hottest experts"), el("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Hottest experts" },
          el("table", {}, el("thead", {}, el("tr", {}, head.map((name, n) => el(n > 2 ? "th.number" : "th", { scope: "col" }, name)))), this.hot)), this.moved)),
      el("p.muted", {}, "Tokens of the last 30 to 60 seconds. Columns are ordered by rank; a line separates ranks."));
  }

  show() {
    this.stopFleet = watch(["fleet"], (event, data) => event === "fleet" && this.groups(data.groups));
    if (this.group) this.watchGroup(this.group);
  }

  hide() {
    this.stopFleet?.();
    this.stop?.();
  }

  groups(groups) {
    const names = groups.map((group) => group.id);
    if (names.join("\n") !== this.names) {
      this.names = names.join("\n");
      this.select.replaceChildren(...names.map((name) => el("option", { value: name }, visible(name))));
      if (names.includes(this.group)) this.select.value = this.group;
      else if (names.length) this.watchGroup(names[0]);
    }
    if (!names.length) this.explain("No group has joined this router.");
  }

  // Says why there is no picture; "": there is one.
  explain(reason) {
    this.none.hidden = !reason;
    this.figures.hidden = Boolean(reason);
    text(this.none, reason);
  }

  repaint() {
    if (this.frame) this.draw();
  }

  watchGroup(name) {
    if (name !== this.group) this.frames = [];
    this.group = name;
    this.stop?.();
    this.stop = watch([`experts:${name}`], (_, data) => (data ? this.receive(data) : this.explain("This group has left the router.")), (state) => text(this.state, state));
  }

  receive(data) {
    const bytes = atob(data.cells);
    this.frames.push({ ...data, cells: Uint8Array.from(bytes, (char) => char.charCodeAt(0)), at: Date.now() });
    this.range.max = this.frames.length - 1;
    if (this.frames.length > FRAMES) {
      this.frames.shift();
      this.range.value -= 1; // the same frame, while paused
      this.range.max -= 1;
    }
    this.explain(!data.experts ? "The model of this group has no experts." : data.layers.length ? "" : "The ranks of this group have not reported the load of their experts yet.");
    if (!this.paused) {
      this.range.value = this.range.max;
      this.draw();
    }
  }

  setPaused(on) {
    this.paused = on;
    text(this.pause, on ? "Continue" : "Pause");
    this.pause.setAttribute("aria-pressed", String(on));
    if (!on) {
      this.range.value = this.range.max;
      this.draw();
    }
  }

  get frame() {
    return this.frames[this.range.value];
  }

  draw() {
    const frame = this.frame;
    if (!frame) return;
    const age = Math.round((Date.now() - frame.at) / 1000);
    text(this.when, this.paused ? `${age} s ago` : "now");
    // Columns in the order of the ranks that hold the experts.
    this.order = frame.homes.map((ranks, expert) => [ranks[0] ?? Infinity, expert]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    this.paint(frame);
    this.legendPaint();
    this.read();
    this.history();
    this.hot.replaceChildren(...frame.hottest.map((hot) => el("tr", {}, el("td", {}, visible(/\.(\d+)\./.exec(hot.layer)?.[1] ?? hot.layer)), el("td", {}, number(hot.expert)),
      el("td", {}, hot.ranks.join(", ")), el("td.number", {}, number(hot.tokens)), el("td.number", {}, number(hot.times_mean, 2)))));
    const total = frame.tokens.reduce((sum, each) => sum + each, 0);
    text(this.moved, total ? `${number(total)} tokens were sent to experts, over ${frame.layers.length} layers.` : "No tokens were sent to experts yet.");
  }

  paint(frame) {
    const { canvas, order } = this;
    const layers = Math.max(frame.layers.length, 1), experts = Math.max(frame.experts, 1);
    // In the pixels of the screen, so that lines are sharp.
    const ratio = devicePixelRatio || 1, width = (canvas.parentNode.clientWidth || 1200) * ratio;
    const cell = Math.max(3, Math.floor(width / experts)), height = Math.max(5, Math.min(Math.floor(36 * ratio), Math.floor((420 * ratio) / layers)));
    canvas.width = experts * cell;
    canvas.height = layers * height;
    const context = canvas.getContext("2d");
    const colours = palette();
    for (let layer = 0; layer < frame.layers.length; layer += 1) {
      for (let column = 0; column < experts; column += 1) {
        context.fillStyle = colours[Math.min(frame.cells[layer * frame.experts + order[column][1]] >> 1, 63)];
        context.fillRect(column * cell, layer * height, cell - (cell > 6 ? 1 : 0), height - 1);
      }
    }
    context.fillStyle = getComputedStyle(canvas).color;
    for (let column = 1; column < experts; column += 1) if (order[column][0] !== order[column - 1][0]) context.fillRect(column * cell - 1, 0, 2, canvas.height);
    const [x, y] = this.cursor;
    context.strokeStyle = context.fillStyle;
    context.lineWidth = 2;
    context.strokeRect(Math.min(x, experts - 1) * cell, Math.min(y, layers - 1) * height, cell, height);
    this.size = [cell, height];
  }

  legendPaint() {
    const context = this.legend.getContext("2d");
    palette().forEach((colour, n) => { context.fillStyle = colour; context.fillRect(Math.floor((n * 180) / 64), 0, 4, 1); });
  }

  point(event) {
    if (!this.size) return;
    const box = this.canvas.getBoundingClientRect();
    this.cursor = [Math.floor(((event.clientX - box.left) * this.canvas.width) / box.width / this.size[0]), Math.floor(((event.clientY - box.top) * this.canvas.height) / box.height / this.size[1])];
    this.clamp();
  }

  move(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    this.cursor = [this.cursor[0] + step[0], this.cursor[1] + step[1]];
    this.clamp();
  }

  clamp() {
    const frame = this.frame;
    if (!frame) return;
    this.cursor = [Math.max(0, Math.min(this.cursor[0], frame.experts - 1)), Math.max(0, Math.min(this.cursor[1], frame.layers.length - 1))];
    this.paint(frame);
    this.read();
  }

  read() {
    const frame = this.frame, [column, layer] = this.cursor;
    const expert = this.order?.[column]?.[1];
    if (!frame || expert === undefined || frame.layers[layer] === undefined) return;
    const value = frame.cells[layer * frame.experts + expert];
    text(this.reading, `Layer ${frame.layers[layer]}, expert ${expert}, rank ${frame.homes[expert].join(", ") || "–"}: ${value === 255 ? "8 or more" : number(value / SCALE, 2)} times the layer's mean`);
  }

  history() {
    const points = this.frames.map((each) => each.imbalance.find((found) => found.layers === "all"));
    if (points.length === 1) points.push(points[0]);
    const top = Math.max(2, ...points.map((point) => point?.experts ?? 1));
    const line = (name) => points.map((point, n) => `${(300 * n) / Math.max(points.length - 1, 1)},${100 - (100 * ((point?.[name] ?? 1) - 1)) / (top - 1)}`).join(" ");
    this.plot.replaceChildren(svg("line", { class: "grid", x1: 0, x2: 300, y1: 100, y2: 100 }), svg("polyline", { class: "line", points: line("experts") }), svg("polyline", { class: "line second", points: line("ranks") }));
    const last = this.frame.imbalance[0];
    text(this.latest, last ? `Experts ${number(last.experts, 2)} (line), ranks ${number(last.ranks, 2)} (dashed); 1 is balanced.` : "No tokens yet.");
  }
}

// 64 colours from the page's background to its strongest: 0 to 4 times the mean.
function palette() {
  const style = getComputedStyle(document.documentElement);
  const dark = style.colorScheme === "dark" || (style.colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const stops = dark ? [[27, 29, 33], [48, 66, 140], [180, 110, 190], [255, 220, 150]] : [[244, 245, 248], [150, 175, 240], [90, 70, 170], [60, 10, 60]];
  return Array.from({ length: 64 }, (_, n) => {
    const place = (n / 63) * (stops.length - 1), at = Math.min(Math.floor(place), stops.length - 2), part = place - at;
    return `rgb(${stops[at].map((value, channel) => Math.round(value + (stops[at + 1][channel] - value) * part)).join(" ")})`;
  });
}
