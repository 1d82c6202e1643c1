// Tables and named figures of the views.

import { el, number, text, visible } from "./dom.js";

// Named figures whose values change in place.
export class Figures {
  constructor(list) {
    this.list = list;
    this.values = new Map();
  }

  draw(figures) {
    for (const [name, value] of Object.entries(figures)) {
      if (!this.values.has(name)) {
        const node = el("dd");
        this.values.set(name, node);
        this.list.append(el("div", {}, el("dt", {}, name), node));
      }
      text(this.values.get(name), value);
    }
  }
}

// A table whose rows are replaced; the first `texts` columns are aligned as text.
export class Table {
  constructor(label, names, texts) {
    this.names = names;
    this.texts = texts;
    this.body = el("tbody");
    this.note = el("p.muted", {}, "Loading…");
    this.scroll = el("div.scroll", { hidden: true, tabIndex: 0, role: "region", "aria-label": label },
      el("table.cards", {}, el("thead", {}, el("tr", {}, names.map((name, n) => el(n < texts ? "th" : "th.number", { scope: "col" }, name)))), this.body));
    this.element = el("div", {}, this.note, this.scroll);
  }

  // A cell is text or an element.
  draw(rows, none, more = 0) {
    this.scroll.hidden = !rows.length;
    text(this.note, rows.length ? (more ? `${number(more)} more rows are not shown.` : "") : none);
    this.note.hidden = !this.note.textContent;
    this.body.replaceChildren(...rows.map((cells) => el("tr", {}, cells.map((cell, n) => el(n ? (n < this.texts ? "td" : "td.number") : "th", { scope: n ? null : "row", "data-label": this.names[n] },
      cell instanceof Node ? cell : visible(cell))))));
  }
}
