// Load of the last hour as this router saw it, and the autoscaler's decisions with their reasons.

import { watch } from "./api.js";
import { compact, el, number, svg, text, visible } from "./dom.js";

// [title, unit, column of the samples, second column, its name]
const PLOTS = [["Requests in this router", "", 3, 5, "waiting in engines"], ["Generated tokens/s", "", 7], ["KV-cache use", " %", 6], ["Groups", "", 1, 2, "ready"],
  ["Wait for a rank", " ms", 9, 8, "predicted"]];

export class Timeline {
  constructor() {
    this.state = el("span.muted", { role: "status" });
    this.plots = PLOTS.map((plot) => new Plot(...plot));
    this.pools = new Map();
    this.scaling = el("div.pools");
    this.none = el("p.muted", {}, "No autoscaler has reported a decision to this router since its start.");
    this.element = el("section.view", { "aria-label": "Load" }, el("div.bar", {}, el("h1", {}, "Load"), this.state),
      el("div.two", {}, this.plots.map((plot) => plot.element)),
      el("p.muted", {}, "One sample every 10 seconds for one hour, taken by this router since its start. Prometheus has the longer history."),
      el("h2", {}, "Autoscaler"), this.none, this.scaling);
  }

  show() {
    this.stop = watch(["timeline", "autoscaling"], (event, data) => {
      if (event === "timeline") this.plots.forEach((plot) => plot.draw(data.rows));
      else if (event === "autoscaling") this.scale(data.pools);
    }, (state) => text(this.state, state));
  }

  hide() {
    this.stop?.();
  }

  scale(pools) {
    this.none.hidden = pools.length > 0;
    const known = this.pools;
    this.pools = new Map(pools.map((each) => [each.pool, known.get(each.pool) ?? new Pool()]));
    for (const each of pools) this.pools.get(each.pool).draw(each);
    const wanted = [...this.pools.values()].map((pool) => pool.element);
    if (wanted.length !== this.scaling.children.length || wanted.some((node, n) => this.scaling.children[n] !== node)) this.scaling.replaceChildren(...wanted);
  }
}

// The decisions for one pool.
class Pool {
  constructor() {
    this.title = el("h3");
    this.decision = el("p");
    this.plot = new Plot("Groups wanted by the autoscaler", "", 1, 2, "ready");
    this.changes = el("tbody");
    this.votes = el("tbody");
    this.signals = el("dl.facts");
    const table = (label, names, body) => el("div.scroll", { tabIndex: 0, role: "region", "aria-label": label },
      el("table", {}, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), body));
    this.element = el("section.card", {}, this.title, this.decision, el("div.two", {}, this.plot.element,
      el("section.card", {}, el("h4", {}, "Changes"), table("Changes", ["Time", "Groups", "Reason"], this.changes))),
    el("details", {}, el("summary", {}, "Votes and signals of the newest decision"), table("Votes", ["Rule", "Vote", "Groups", "Reason"], this.votes), this.signals));
  }

  draw({ pool, newest, sizes, changes }) {
    text(this.title, visible(pool || "All groups"));
    text(this.decision, visible(`${clock(newest.at)}: ${newest.current} → ${newest.target} groups${newest.dry_run ? " (dry run)" : ""}${newest.blind ? " (without signals)" : ""}: ${newest.reason}`));
    this.plot.draw(sizes);
    this.changes.replaceChildren(...(changes.length ? changes : [null]).map((each) => (each === null
      ? el("tr", {}, el("td", { colSpan: 3 }, "No change yet."))
      : el("tr", {}, el("th", { scope: "row" }, clock(each.at)), el("td", {}, `${each.current} → ${each.target}${each.dry_run ? " (dry run)" : ""}`), el("td", {}, visible(each.reason))))));
    this.votes.replaceChildren(...newest.votes.map((vote) => el("tr", {}, el("th", { scope: "row" }, visible(vote.rule)), el("td", {}, visible(vote.kind)),
      el("td", {}, vote.kind === "abstain" ? "–" : number(vote.groups)), el("td", {}, visible(vote.reason)))));
    this.signals.replaceChildren(...Object.entries(newest.signals).flatMap(([name, value]) => [el("dt", {}, visible(name)), el("dd", {}, value === null ? "none" : number(value, 3))]));
  }
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString();

export class Plot {
  constructor(title, unit, column, second, secondTitle) {
    Object.assign(this, { title, unit, column, second, secondTitle });
    this.now = el("p.muted");
    this.picture = svg("svg", { class: "plot", viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.from = el("span");
    this.element = el("section.card", {}, el("h3.plot-title", {}, title), this.picture, el("div.axis", {}, this.from, el("span", {}, "now")), this.now);
  }

  draw(rows) {
    if (!rows.length) return;
    const scale = this.unit === " %" ? 0.1 : 1;
    const values = (column) => rows.map((row) => (row[column] ?? 0) * scale);
    const first = values(this.column), second = this.second === undefined ? [] : values(this.second);
    const top = Math.max(this.unit === " %" ? 100 : 1, ...first, ...second);
    const x = (n) => (300 * n) / Math.max(rows.length - 1, 1), y = (value) => 100 - (96 * value) / top;
    const points = (list) => list.map((value, n) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const parts = [svg("polygon", { class: "area", points: `0,100 ${points(first)} ${x(first.length - 1)},100` }), svg("line", { class: "grid", x1: 0, x2: 300, y1: 100, y2: 100 }), svg("polyline", { class: "line", points: points(first) })];
    if (second.length) parts.push(svg("polyline", { class: "line second", points: points(second) }));
    this.picture.replaceChildren(...parts);
    text(this.from, new Date(rows[0][0] * 1000).toLocaleTimeString());
    text(this.now, `Now ${compact(first.at(-1))}${this.unit}, highest ${compact(Math.max(...first))}${this.unit}${second.length ? `; ${this.secondTitle} ${compact(second.at(-1))} (dashed)` : ""}`);
  }
}
