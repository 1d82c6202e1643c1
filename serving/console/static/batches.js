// The batches of the key's tenant.

import { json } from "./api.js";
import { button, confirm, el, number, text, toast, visible } from "./dom.js";
import { Table } from "./table.js";

const COLUMNS = ["Batch", "State", "Lines", "Completed", "Failed", "Created", "Ended, or ends by", ""];
const EVERY = 5000; // milliseconds
const ENDED = new Set(["failed", "completed", "expired", "cancelled", "cancelling"]);

export class Batches {
  constructor() {
    this.state = el("span.muted", { role: "status" });
    this.table = new Table("Batches", COLUMNS, 2);
    this.timer = 0;
    this.drawn = "";
    this.element = el("section.view", { "aria-label": "Batches" },
      el("div.bar", {}, el("h1", {}, "Batches"), this.state), el("section.card", {}, this.table.element),
      el("p.muted", {}, "The newest 100 batches of this key's tenant, on all routers. Lines run when ranks have room that other requests do not need; only running lines are in the list of requests."));
  }

  show() {
    this.load();
    this.timer = setInterval(() => { if (!document.hidden) this.load(); }, EVERY);
  }

  hide() {
    clearInterval(this.timer);
  }

  async load() {
    try {
      const page = await json("../v1/batches?limit=100");
      text(this.state, page.has_more ? "There are more." : "");
      // Equal pages are not drawn again, so that a button keeps the keyboard's focus.
      const drawn = JSON.stringify(page.data);
      if (drawn !== this.drawn) this.table.draw(page.data.map((each) => this.row(each)), "There are no batches.");
      this.drawn = drawn;
    } catch (error) {
      text(this.state, visible(error.message));
    }
  }

  row(batch) {
    const counts = batch.request_counts ?? {};
    const time = (at) => (at ? new Date(at * 1000).toLocaleString() : "–");
    const problem = batch.errors?.data?.[0]?.message;
    return [el("span", {}, visible(batch.id), el("br"), el("small", {}, visible([batch.endpoint, batch.metadata && Object.entries(batch.metadata).map((pair) => pair.join(" ")).join(", ")].filter(Boolean).join(" · ")))),
      el("span", {}, el(`span.pill.${PILLS[batch.status] ?? "idle"}`, {}, visible(batch.status.replaceAll("_", " "))), problem ? el("small", {}, " ", visible(problem)) : null),
      number(counts.total ?? 0), number(counts.completed ?? 0), number(counts.failed ?? 0), time(batch.created_at), time(batch.completed_at ?? batch.expires_at),
      ENDED.has(batch.status) ? "" : button("Cancel", () => this.cancel(batch), { kind: "quiet", "aria-label": `Cancel ${visible(batch.id)}` })];
  }

  async cancel(batch) {
    if (!await confirm("Cancel this batch?", `${visible(batch.id)}: lines without an answer are not run, and the results so far are kept.`, "Cancel the batch")) return;
    try {
      await json(`../v1/batches/${encodeURIComponent(batch.id)}/cancel`, { method: "POST", body: {} });
      toast("Cancelling");
    } catch (error) {
      toast(error.message);
    }
    this.load();
  }
}

const PILLS = { in_progress: "generating", validating: "queued", finalizing: "generating", cancelling: "draining", completed: "ready", failed: "fenced", expired: "fenced" };
