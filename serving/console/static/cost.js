// Today's usage, price and cost, and budgets.

import { json } from "./api.js";
import { button, el, number, set, text, visible } from "./dom.js";
import { Figures, Table } from "./table.js";

const USAGE = ["Tenant", "Model", "Requests", "Prompt tokens", "Cached", "Output tokens", "Price", "Cost"];
const BUDGETS = ["Budget of", "Period", "Spent", "Reserved", "Soft", "Hard", "Renews"];
const EVERY = 15000; // milliseconds

export class Cost {
  constructor(session) {
    this.state = el("span.muted", { role: "status" });
    this.totals = el("dl.totals");
    this.figures = new Figures(this.totals);
    this.usage = new Table("Usage by tenant and model", USAGE, 2);
    this.budgets = new Table("Budgets", BUDGETS, 2);
    this.timer = 0;
    this.element = el("section.view", { "aria-label": "Cost" },
      el("div.bar", {}, el("h1", {}, "Cost"), this.state, button("Refresh", () => this.load(), { kind: "quiet" })), this.totals,
      session.admin ? el("section.card", {}, el("h2", {}, "Usage since midnight UTC"), this.usage.element) : null,
      el("section.card", {}, el("h2", {}, session.admin ? "Budgets" : "Your budgets"), this.budgets.element),
      el("p.muted", {}, "Read from the ledger every 15 seconds; a request is included when it has ended. ",
        session.admin ? "The price is what tenants pay according to the tariff. The cost is the requests' share of the GPU time (requires ledger.gpu_hour_price)." : "Reserved is the maximum price of the requests in flight."));
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
      this.draw(await json("api/spending"));
      text(this.state, "");
    } catch (error) {
      text(this.state, visible(error.message));
    }
  }

  draw({ usage, hidden_usage: moreUsage, total, budgets, hidden_budgets: moreBudgets }) {
    const money = (value) => (value == null ? "–" : number(value, 6));
    if (total) {
      const of = (value) => (value == null ? "–" : `${number(value, 4)} ${visible(total.currency)}`);
      this.figures.draw({
        Requests: number(total.requests), "Output tokens": number(total.output), Price: of(total.price), "Cost of GPUs": of(total.cost),
        "Cost per million output tokens": of(total.cost_per_million), "GPU hours": total.cost == null ? "–" : number(total.gpu_hours, 2), "Of these, busy": total.cost == null ? "–" : number(total.busy_hours, 2),
      });
      this.usage.draw(usage.map((row) => [row.tenant, row.model, number(row.requests), number(row.prompt), number(row.cached), number(row.output), money(row.price), money(row.cost)]),
        "No request has ended today.", moreUsage);
    }
    this.budgets.draw(budgets.map((each) => [each.key === null ? each.tenant : `key ${each.key} of ${each.tenant}`, each.period, meter(each, money), money(each.reserved),
      money(each.soft), money(each.hard), new Date(each.renews_at * 1000).toLocaleString()]), "The key file sets no budgets.", moreBudgets);
  }
}

// An amount with its part of the hard limit.
function meter({ spent, reserved, soft, hard }, money) {
  if (!hard) return el("span", {}, money(spent));
  const part = (spent + reserved) / hard;
  const state = part >= 1 ? "used up" : soft != null && spent >= soft ? "above the soft limit" : "";
  return el("span", {}, money(spent), state ? el("b.bad", {}, ` ${state}`) : null,
    set(el("span.meter", { role: "img", "aria-label": `${number(100 * part, 1)} percent spent or reserved` }, el("i")), { style: { "--part": String(Math.min(part, 1)) } }));
}
