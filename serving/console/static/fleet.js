// The fleet as it is now: groups, ranks, load, and an operator's actions.

import { json, routerTime, watch } from "./api.js";
import { button, compact, confirm, dialog, el, number, seconds, set, text, toast, visible } from "./dom.js";
import { Figures, Table } from "./table.js";

const LARGE = 24; // ranks of a group above which they are small squares
const ACTIONS = {
  cordon: ["Cordon", "New requests go to other groups. Running requests continue. Uncordon reverses it."],
  drain: ["Drain", "New requests go to other groups; running requests get TIME to finish, then continue on other groups. The group stays cordoned."],
  uncordon: ["Uncordon", "Requests are routed to the group again."],
};

export class Fleet {
  constructor(session) {
    this.session = session;
    this.content = null;
    this.rows = [];
    this.cards = new Map();
    this.state = el("span.muted", { role: "status" });
    this.totals = el("dl.totals");
    this.groups = el("div.groups");
    this.notice = el("p.muted");
    this.models = new Table("Models", ["Model", "State", "Pools: ready of joined groups", "Queued"], 3);
    this.served = el("section.card", { hidden: true }, el("h2", {}, "Models"), this.models.element);
    this.history = el("tbody");
    this.former = el("section.card", { hidden: true }, el("h2", {}, "Former groups"), el("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Former groups" },
      el("table", {}, el("thead", {}, el("tr", {}, ["Group", "Since", "Reason"].map((name) => el("th", { scope: "col" }, name)))), this.history)));
    this.element = el("section.view", { "aria-label": "Fleet" }, el("div.bar", {}, el("h1", {}, "Fleet"), this.state), this.totals, this.served, this.notice, this.groups, this.former);
  }

  show() {
    this.stop = watch(["fleet"], (event, data) => this.receive(event, data), (state) => text(this.state, state));
  }

  hide() {
    this.stop?.();
  }

  receive(event, data) {
    if (event === "fleet") {
      this.content = data;
      this.drawGroups();
    } else if (event === "load") this.rows = data;
    else if (event === "models") this.status = data;
    if (!this.content) return;
    if (event === "load") this.drawLoad();
    else this.drawModels();
  }

  // Only with several models or pools; otherwise the groups show everything.
  drawModels() {
    const models = this.status ?? [], { groups } = this.content;
    this.served.hidden = models.length < 2 && !models.some((model) => model.pools.length > 1);
    if (this.served.hidden) return;
    this.models.draw(models.map((model) => [`${model.name}${model.aliases.length ? ` (${model.aliases.join(", ")})` : ""}`,
      `${model.ready ? "ready" : "no ready group: requests park"}${model.loaded ? "" : ", not loaded"}`,
      model.pools.map((pool) => {
        const own = groups.filter((group) => group.model === model.name && group.pool === pool);
        return `${pool} ${own.filter((group) => group.state === "ready").length} of ${own.length}`;
      }).join(", "), number(model.queued)]), "");
  }

  drawGroups() {
    const { groups, history, hidden_groups: more } = this.content;
    const known = this.cards;
    this.cards = new Map();
    for (const group of groups) {
      const name = `${group.id} ${group.epoch} ${group.ranks.length}`;
      const card = known.get(name) ?? new GroupCard(this);
      card.update(group);
      this.cards.set(name, card);
    }
    // By model and pool; the order of the ranks' rows stays that of the groups.
    const place = ({ group }) => [group.model, group.pool, group.id].join("\n");
    const wanted = [...this.cards.values()].sort((a, b) => (place(a) < place(b) ? -1 : 1)).map((card) => card.element);
    // A node that is moved loses the keyboard's focus, so only a changed order is applied.
    if (wanted.length !== this.groups.children.length || wanted.some((node, n) => this.groups.children[n] !== node)) this.groups.replaceChildren(...wanted);
    this.notice.hidden = groups.length > 0 && !more;
    text(this.notice, more ? `${more} more groups are not shown.` : "No group has joined this router. Requests wait until one is ready.");
    this.former.hidden = !history.length;
    this.history.replaceChildren(...history.map((each) => el("tr", {}, el("th", { scope: "row" }, visible(each.id)),
      el("td", {}, new Date(each.since * 1000).toLocaleTimeString()), el("td", {}, visible(each.reason)))));
  }

  drawLoad() {
    let at = 0;
    const sum = [0, 0, 0, 0, 0, 0];
    for (const card of this.cards.values()) {
      card.drawAge();
      for (const rank of card.ranks) {
        const row = this.rows[at++];
        if (!row) continue;
        rank.load(row);
        for (let n = 0; n < 6; n += 1) sum[n] += row[n];
      }
    }
    const groups = this.content.groups;
    const ready = groups.filter((group) => group.state === "ready").length;
    this.figures ??= new Figures(this.totals);
    this.figures.draw({
      "Ready groups": `${ready} / ${groups.length}`, Ranks: number(at), "In flight here": number(sum[0]), Running: number(sum[2]),
      Waiting: number(sum[3]), "KV use": `${number(at ? sum[4] / at / 10 : 0)} %`, "Tokens/s": compact(sum[5]),
    });
  }

  async act(group, action) {
    const [label, explanation] = ACTIONS[action];
    if (!await confirm(`${label} ${visible(group.id)}?`, explanation.replace("TIME", seconds(this.session.drain_timeout)), label)) return;
    try {
      await json("api/groups", { method: "POST", body: { group: group.id, action } });
      toast(`${label}: ${group.id}`);
    } catch (error) {
      toast(error.message);
    }
  }
}

class GroupCard {
  constructor(fleet) {
    this.fleet = fleet;
    this.title = el("h2");
    this.pill = el("span");
    this.age = el("small");
    this.reason = el("p.muted");
    this.buttons = el("div.buttons");
    this.grid = el("div.ranks");
    this.ranks = [];
    this.element = el("article.card", {}, el("div.bar", {}, this.title, this.pill, this.age, this.buttons), this.reason, this.grid);
  }

  update(group) {
    const changed = this.group?.state !== group.state;
    this.group = group;
    text(this.title, visible(group.id));
    this.element.setAttribute("aria-label", `Group ${visible(group.id)}, ${group.state}`);
    this.pill.className = `pill ${group.state}`;
    text(this.pill, group.state);
    const parts = [group.reason, group.model && `model ${group.model}`, group.pool && group.pool !== "default" && `pool ${group.pool}`, group.app && `app ${group.app}`, `${group.ranks.length} of ${group.size} ranks`, group.experts && `${group.experts} experts`];
    text(this.reason, visible(parts.filter(Boolean).join(" · ")));
    this.grid.classList.toggle("dense", group.ranks.length > LARGE);
    if (this.ranks.length !== group.ranks.length) {
      this.ranks = group.ranks.map(() => new RankTile());
      this.grid.replaceChildren(...this.ranks.map((tile) => tile.element));
    }
    group.ranks.forEach((rank, n) => this.ranks[n].update(rank, group));
    if (changed) {
      const names = group.state === "draining" ? ["drain", "uncordon"] : ["cordon", "drain"];
      this.buttons.replaceChildren(...names.map((name) => button(ACTIONS[name][0], () => this.fleet.act(this.group, name), { kind: "quiet" })));
    }
    this.drawAge();
  }

  drawAge() {
    const age = Math.max(routerTime() - this.group.since, 0);
    text(this.age, age < 60 ? `for ${Math.floor(age)} s` : `for ${seconds(age)}`);
  }
}

class RankTile {
  constructor() {
    this.name = el("span");
    this.rate = el("span.muted");
    this.meter = el("i");
    this.line = el("small");
    this.place = el("small");
    this.element = el("button.rank", { type: "button", onclick: () => this.open() }, el("b", {}, this.name, this.rate), el("span.meter", {}, this.meter), this.line, this.place);
  }

  update(rank, group) {
    this.rank = rank;
    this.group = group;
    const sick = !rank.healthy || rank.draining;
    this.element.classList.toggle("sick", sick);
    text(this.name, group.ranks.length > LARGE ? String(rank.rank) : `rank ${rank.rank}`);
    text(this.place, visible(sick ? rank.reason || "draining" : rank.node));
    this.place.classList.toggle("bad", sick);
  }

  load(row) {
    this.row = row;
    const [inflight, , running, waiting, kv, rate] = row;
    set(this.element, { style: { "--part": String(Math.min(kv / 1000, 1)) } });
    text(this.rate, rate ? `${compact(rate)} tok/s` : "");
    text(this.line, `KV ${Math.round(kv / 10)} % · ${running} running${waiting ? ` · ${waiting} waiting` : ""}`);
    if (this.group.ranks.length > LARGE) this.element.setAttribute("aria-label", `Rank ${this.rank.rank}, ${this.rank.healthy ? "healthy" : "not healthy"}, KV use ${Math.round(kv / 10)} percent, ${running} running, ${inflight} in flight from this router`);
  }

  open() {
    const { rank, group, row } = this;
    const facts = {
      State: rank.healthy ? "healthy" : `not healthy: ${rank.reason}`, Node: rank.node || "unknown", Process: rank.pid || "unknown",
      Joined: rank.joined ? `${seconds(routerTime() - rank.joined)} ago` : "unknown", Engine: rank.engine, Version: rank.version,
      "Tensor parallel": rank.tensor_parallel, Experts: rank.experts, "Maximum tokens of a sequence": rank.max_len || "unknown", "Maximum sequences": rank.max_seqs || "unknown",
      "KV blocks": rank.kv_blocks || "unknown", Epoch: group.epoch,
    };
    if (row) Object.assign(facts, { "Requests of this router": row[0], "Outstanding tokens": number(row[1]), "Step time": seconds(row[6] / 1e6), "Round trip": row[7] < 0 ? "unknown" : seconds(row[7] / 1e6) });
    dialog(`Rank ${rank.rank} of ${visible(group.id)}`, el("dl.facts", {}, Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, visible(value))])));
  }
}
