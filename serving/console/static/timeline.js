// Load of the last hour as this router saw it, and usage from the ledger.

import { json, watch } from "./api.js";
import { compact, el, number, svg, text, visible } from "./dom.js";

// [title, unit, column of the samples, second column]
const PLOTS = [["Requests in this router", "", 3, 5, "waiting in engines"], ["Generated tokens/s", "", 7], ["KV-cache use", " %", 6], ["Groups", "", 1, 2, "ready"]];

export class Timeline {
  constructor(session) {
    this.session = session;
    this.state = el("span.muted", { role: "status" });
    this.plots = PLOTS.map((plot) => new Plot(...plot));
    this.usage = el("tbody");
    this.note = el("p.muted", {}, session.ledger ? "" : "This router has no ledger (ledger.directory): no usage or cost.");
    this.table = el("div.scroll", { hidden: true, tabIndex: 0, role: "region", "aria-label": "Usage by tenant" }, el("table", {}, el("thead", {}, el("tr", {},
      ["Tenant", "Requests", "Prompt tokens", "Cached", "Output tokens", "Price"].map((name, n) => el(n ? "th.number" : "th", { scope: "col" }, name)))), this.usage));
    this.element = el("section.view", { "aria-label": "Load" }, el("div.bar", {}, el("h1", {}, "Load and usage"), this.state),
      el("div.two", {}, this.plots.map((plot) => plot.element)),
      el("section.card", {}, el("h2", {}, "Usage since midnight UTC"), this.note, this.table),
      el("p.muted", {}, "One sample every 10 seconds for one hour, as seen by this router; a restart empties it. Prometheus has the longer history and the autoscaler's decisions."));
  }

  show() {
    this.stop = watch(["timeline"], (_, data) => this.plots.forEach((plot) => plot.draw(data.rows)), (state) => text(this.state, state));
    if (this.session.ledger) this.loadUsage();
  }

  hide() {
    this.stop?.();
  }

  async loadUsage() {
    const start = Math.floor(Date.now() / 86400000) * 86400;
    const query = `start_time=${start}&bucket_width=1d&group_by=project_id`;
    try {
      const [usage, costs] = await Promise.all([json(`../v1/organization/usage/completions?${query}`), json(`../v1/organization/costs?${query}`)]);
      const price = new Map(costs.data.flatMap((bucket) => bucket.results).map((each) => [each.project_id, each.amount]));
      const rows = usage.data.flatMap((bucket) => bucket.results).slice(0, 200);
      this.usage.replaceChildren(...rows.map((each) => {
        const amount = price.get(each.project_id);
        return el("tr", {}, el("th", { scope: "row" }, visible(each.project_id)),
          [each.num_model_requests, each.input_tokens, each.input_cached_tokens, each.output_tokens].map((value) => el("td.number", {}, number(value))),
          el("td.number", {}, amount ? `${number(amount.value, 4)} ${visible(amount.currency)}` : "–"));
      }));
      this.table.hidden = !rows.length;
      text(this.note, rows.length ? "" : "No requests yet.");
    } catch (error) {
      text(this.note, visible(error.message));
    }
  }
}

class Plot {
  constructor(title, unit, column, second, secondTitle) {
    Object.assign(this, { title, unit, column, second, secondTitle });
    this.now = el("p.muted");
    this.picture = svg("svg", { class: "plot", viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.from = el("span");
    this.element = el("section.card", {}, el("h2", {}, title), this.picture, el("div.axis", {}, this.from, el("span", {}, "now")), this.now);
  }

  draw(rows) {
    if (!rows.length) return;
    const scale = this.unit === " %" ? 0.1 : 1;
    const values = (column) => rows.map((row) => row[column] * scale);
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
