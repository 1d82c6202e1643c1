// Requests in progress.

import { json, routerTime, watch } from "./api.js";
import { button, confirm, el, number, seconds, text, toast, visible } from "./dom.js";
import { showDecision } from "./message.js";
import { Figures } from "./table.js";

const COLUMNS = ["Request", "Phase", "Rank", "Age", "Prompt", "Output", "Resumed", ""];

export class Requests {
  constructor(session) {
    this.session = session;
    this.state = el("span.muted", { role: "status" });
    this.totals = el("dl.totals");
    this.figures = new Figures(this.totals);
    this.body = el("tbody");
    this.rows = new Map();
    this.note = el("p.muted", {}, "Loading…");
    this.element = el("section.view", { "aria-label": "Requests" },
      el("div.bar", {}, el("h1", {}, session.admin ? "Requests in progress" : "Your requests in progress"), this.state), this.totals, this.note,
      (this.table = el("div.scroll", { hidden: true, tabIndex: 0, role: "region", "aria-label": "List of requests" }, el("table.cards", {}, el("thead", {}, el("tr", {}, COLUMNS.map((name, n) => el(n > 2 && n < 7 ? "th.number" : "th", { scope: "col" }, name || el("span.live", {}, "Actions"))))), this.body))),
      el("p.muted", {}, "The texts of prompts and answers are never shown here. While this view is open, the router keeps the scores of all routing decisions."));
  }

  show() {
    this.stop = watch(["requests"], (_, data) => this.receive(data), (state) => text(this.state, state));
    this.timer = setInterval(() => { for (const row of this.rows.values()) row.drawAge(); }, 1000);
  }

  hide() {
    this.stop?.();
    clearInterval(this.timer);
  }

  receive(data) {
    this.figures.draw({ "In progress": number(data.total), Generating: number(data.phases.generating ?? 0), Prefill: number(data.phases.prefill ?? 0),
      Queued: number(data.phases.queued ?? 0), Parked: number(data.phases.parked ?? 0), Resuming: number(data.phases.resuming ?? 0) });
    const more = data.total - data.requests.length;
    this.table.hidden = !data.requests.length;
    this.note.hidden = data.total > 0 && !more;
    text(this.note, more ? `The oldest ${number(data.requests.length)} are listed and counted by phase; ${number(more)} more are not.` : "No request is in progress.");
    const known = this.rows;
    this.rows = new Map();
    for (const request of data.requests) {
      const row = known.get(request.number) ?? new Row(this);
      row.update(request);
      this.rows.set(request.number, row);
      if (!row.element.isConnected) this.body.append(row.element);
    }
    for (const [name, row] of known) if (!this.rows.has(name)) row.element.remove();
  }

  async cancel(request) {
    if (!await confirm("Cancel this request?", `Its client gets the error CANCELLED_BY_OPERATOR. Request ${visible(request.id)} of ${visible(request.tenant)}.`, "Cancel the request")) return;
    try {
      await json("api/cancel", { method: "POST", body: { number: request.number } });
      toast("Cancelled");
    } catch (error) {
      toast(error.message);
    }
  }
}

class Row {
  constructor(view) {
    this.name = el("span");
    this.who = el("small");
    this.pill = el("span.pill");
    this.waiting = el("small");
    this.why = button("Why?", () => showDecision([this.request.why]), { kind: "quiet", hidden: true });
    this.rank = el("span");
    this.cells = ["Age", "Prompt", "Output", "Resumed"].map((label) => el("td.number", { "data-label": label }));
    this.element = el("tr", {}, el("th", { scope: "row" }, this.name, el("br"), this.who), el("td", {}, this.pill, " ", this.waiting),
      el("td", {}, this.rank, this.why), this.cells, el("td", {}, button("Cancel", () => view.cancel(this.request), { kind: "quiet", "aria-label": "Cancel request" })));
  }

  update(request) {
    this.request = request;
    text(this.name, visible(request.id));
    text(this.who, visible([request.tenant, request.model, request.priority, request.session && `session ${request.session}`].filter(Boolean).join(" · ")));
    this.pill.className = `pill ${request.phase}`;
    text(this.pill, request.phase);
    const wait = request.predicted_wait == null ? "" : `, about ${seconds(request.predicted_wait)}`;
    const place = request.position == null ? "" : `number ${number(request.position)} in the queue${wait}: `;
    text(this.waiting, visible(request.waiting_for && place + request.waiting_for));
    text(this.rank, request.why ? visible(`${request.why.group} / ${request.why.rank}`) : "–");
    this.why.hidden = !request.why;
    this.drawAge();
    const values = [`${number(request.prompt_tokens)}${request.cached_tokens ? ` (${number(request.cached_tokens)} cached)` : ""}`, number(request.output_tokens), number(request.resumes)];
    values.forEach((value, n) => text(this.cells[n + 1], value));
  }

  drawAge() {
    const { since } = this.request;
    const age = Math.max(routerTime() - since, 0);
    text(this.cells[0], since == null ? "–" : age < 60 ? `${age.toFixed(1)} s` : seconds(age));
  }
}
