// One message of a conversation.

import { button, copy, dialog, el, number, seconds, text, visible } from "./dom.js";
import { ended } from "./conversations.js";
import { GrowingMarkdown } from "./markdown.js";

const FINISH = new Map([["stop", ""], ["length", "stopped at the token limit"], ["stopped", "stopped"], ["tool_calls", "calls a tool"]]);

export class Message {
  // actions: {edit(node), regenerate(node), show(node), siblings(node)}
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.streaming = false;
    this.folds = false; // whether the reasoning folds when the answer begins
    this.frame = 0;
    this.element = el(`article.message.${node.role}`, { "aria-label": node.role === "user" ? "You" : "Answer" });
    this.build();
  }

  build() {
    const { node, element } = this;
    if (node.role === "user") {
      this.body = el("div.body", { dir: "auto" }, visible(node.content));
      element.replaceChildren(this.body, this.toolbar());
      return;
    }
    this.thought = el("div.thought", { dir: "auto" });
    this.summary = el("summary", {}, "Reasoning");
    this.details = el("details.reasoning", {}, this.summary, this.thought);
    this.body = el("div.body.prose", { dir: "auto" });
    this.growing = [new GrowingMarkdown(this.thought), new GrowingMarkdown(this.body)];
    this.mark = el("p.mark", { hidden: true });
    this.stats = el("p.stats");
    this.error = el("p.error", { role: "alert", hidden: true });
    this.bar = el("div.slot", {});
    element.replaceChildren(this.details, this.body, this.mark, this.error, this.stats, this.bar);
    this.render(true);
  }

  // Draws at most once per frame.
  changed() {
    this.frame ||= requestAnimationFrame(() => this.render(false));
  }

  stream(on) {
    this.streaming = on;
    this.element.setAttribute("aria-busy", String(on));
    this.element.classList.toggle("streaming", on);
    if (on) this.details.open = this.folds = true;
    this.render(!on);
  }

  render(whole) {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { node, growing: [thought, body] } = this;
    const { meta } = node;
    this.details.hidden = !node.reasoning;
    if (whole) {
      thought.finish(node.reasoning);
      body.finish(node.content);
    } else {
      if (node.reasoning !== thought.source) thought.update((thought.source = node.reasoning));
      if (node.content !== body.source) body.update((body.source = node.content));
    }
    // Once, so that a reader may open it again.
    if (this.folds && node.content) this.folds = this.details.open = false;
    text(this.summary, this.streaming && !node.content ? "Reasoning…" : "Reasoning");
    this.mark.hidden = !meta.resumes;
    if (meta.resumes) text(this.mark, `⟳ A rank was lost; the answer continued on another one${meta.resumes > 1 ? ` (${meta.resumes} times)` : ""}.`);
    this.error.hidden = !meta.error;
    text(this.error, visible(meta.error ?? ""));
    text(this.stats, this.statistics());
    if (whole) this.bar.replaceChildren(this.streaming ? "" : this.toolbar());
  }

  statistics() {
    const { meta } = this.node;
    const parts = [];
    if (meta.tokens) parts.push(`${number(meta.tokens)} tokens`);
    if (meta.rate) parts.push(`${meta.tokens ? "" : "≈ "}${number(meta.rate, 1)} tokens/s`);
    if (meta.ttft) parts.push(`first after ${seconds(meta.ttft)}`);
    if (meta.prompt_tokens) parts.push(`prompt ${number(meta.prompt_tokens)}${meta.cached_tokens ? ` (${number(meta.cached_tokens)} cached)` : ""}`);
    if (meta.price !== undefined) parts.push(`${meta.price.toLocaleString("en", { maximumSignificantDigits: 3 })} ${visible(meta.currency)}`);
    const rank = meta.why?.at?.(-1);
    if (rank?.group) parts.push(`rank ${visible(rank.rank)} of ${visible(rank.group)}`);
    const finish = FINISH.get(meta.finish) ?? meta.finish;
    if (finish) parts.push(visible(finish));
    // The page was closed, or another tab streams it.
    if (!this.streaming && !ended(this.node)) parts.push("incomplete");
    return parts.join(" · ");
  }

  toolbar() {
    const { node, actions } = this;
    const siblings = actions.siblings(node);
    const at = siblings.indexOf(node);
    const answer = node.role === "assistant";
    return el("div.toolbar", {},
      siblings.length > 1 && el("span.branches", {},
        button("‹", () => actions.show(siblings[at - 1]), { kind: "quiet", disabled: at === 0, "aria-label": "Previous version" }),
        el("span", {}, `${at + 1} / ${siblings.length}`),
        button("›", () => actions.show(siblings[at + 1]), { kind: "quiet", disabled: at === siblings.length - 1, "aria-label": "Next version" })),
      button("Copy", () => copy(node.content), { kind: "quiet", "aria-label": answer ? "Copy answer" : "Copy message" }),
      answer ? node.parent && button("Regenerate", () => this.regenerate(), { kind: "quiet" })
        : button("Edit", () => this.edit(), { kind: "quiet" }),
      answer && node.meta.why?.length ? button("Why this rank?", () => showDecision(node.meta.why), { kind: "quiet" }) : null);
  }

  regenerate() {
    if (this.node.parent) this.actions.regenerate(this.node);
  }

  edit() {
    const leave = () => {
      this.build();
      [...this.element.querySelectorAll(".toolbar button")].at(-1).focus(); // Edit
    };
    const input = el("textarea", { value: this.node.content, rows: Math.min(12, this.node.content.split("\n").length + 1), "aria-label": "Edit message" });
    const form = el("form.edit", { onsubmit: (event) => {
      event.preventDefault();
      if (input.value.trim()) this.actions.edit(this.node, input.value);
    } }, input, el("div.buttons", {}, button("Cancel", leave), el("button.primary", { type: "submit" }, "Send as a new branch")));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); leave(); } // and does not stop an answer
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
    });
    this.element.replaceChildren(form);
    input.focus();
  }
}

// Returns the routing decisions of a request, with the scores of the other candidates. They may come
// from an imported file, so nothing in them has a type.
export function decision(decisions) {
  return el("div.decisions", {}, decisions.map((each) => (typeof each === "object" && each ? section(each) : el("p", {}, visible(each)))));
}

function section({ rank, group, reason, matched_tokens: matched, filtered, candidates }) {
  const removed = Object.entries(filtered ?? {}).map(([name, count]) => `${name} ${count}`).join(", ");
  const known = Array.isArray(candidates) ? candidates.filter((each) => typeof each === "object" && each).slice(0, 16) : [];
  return el("section", {},
    el("p", {}, el("strong", {}, `Rank ${visible(rank)} of ${visible(group)}. `), visible(reason)),
    matched ? el("p", {}, `${number(matched)} prompt tokens were cached there.`) : null,
    removed ? el("p", {}, `Ranks removed by filters: ${visible(removed)}.`) : null,
    known.length ? scores(known) : el("p.muted", {}, "Scores of the other candidates were not kept."));
}

function scores(candidates) {
  // A scorer without information about a rank is left out of its scores.
  const names = [...new Set(candidates.flatMap(Object.keys))].filter((name) => !["group", "rank", "total"].includes(name)).slice(0, 16);
  return el("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Scores of the candidates" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Rank", "Total", ...names].map((name) => el("th", { scope: "col" }, visible(name))))),
    el("tbody", {}, candidates.map((each) => el("tr", {},
      el("th", { scope: "row" }, `${visible(each.group)} / ${visible(each.rank)}`), [each.total, ...names.map((name) => each[name])].map((score) => el("td", {}, score === undefined ? "–" : number(score, 3))))))));
}

export const showDecision = (decisions) => dialog("Why this rank", decision(decisions));
