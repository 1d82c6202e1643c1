// The chat view: conversations, thread, composer and parameters.

import { json } from "./api.js";
import { complete } from "./completion.js";
import { Conversation, Conversations, serialize } from "./conversations.js";
import { button, confirm, dialog, download, el, field, toast, visible } from "./dom.js";
import { Message } from "./message.js";
import { snippets } from "./tryit.js";

const NUMBERS = { temperature: [0, 2, 0.05], top_p: [0.01, 1, 0.01], max_tokens: [1, 1e7, 1], seed: [0, 2 ** 32 - 1, 1] };

export class Chat {
  constructor(session) {
    this.session = session;
    this.store = new Conversations(session.tenant);
    this.current = this.store.all[0] ?? new Conversation();
    this.aborter = null;
    this.models = [];
    this.build();
    this.open(this.current);
    this.loadModels();
  }

  build() {
    this.list = el("ul.conversations");
    this.thread = el("div.thread", { role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.scroller = el("div.scroller", { tabIndex: 0, role: "region", "aria-label": "Messages" }, this.thread);
    this.input = el("textarea", { rows: 1, placeholder: "Ask anything", "aria-label": "Message", enterKeyHint: "send", dir: "auto" });
    this.send = el("button.primary", { type: "submit" }, "Send");
    this.stop = button("Stop", () => this.aborter?.abort(), { kind: "danger", hidden: true });
    this.composer = el("form.composer", { onsubmit: (event) => { event.preventDefault(); this.submit(); } },
      this.input, el("div.buttons", {}, this.stop, this.send));
    this.input.addEventListener("input", () => this.grow());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.submit(); }
    });
    this.model = el("select", { onchange: () => this.change({ model: this.model.value }) });
    this.system = el("textarea", { rows: 3, onchange: () => this.change({ system: this.system.value }) });
    this.effort = el("select", { onchange: () => this.sample("reasoning_effort", this.effort.value) },
      ["", "low", "medium", "high"].map((value) => el("option", { value }, value || "default")));
    this.numbers = Object.fromEntries(Object.entries(NUMBERS).map(([name, [min, max, step]]) =>
      [name, el("input", { type: "number", min, max, step: step < 1 ? "any" : step, placeholder: "default", onchange: () => this.sample(name, this.numbers[name].value) })]));
    this.parameters = el("aside.parameters", { id: "parameters", "aria-label": "Parameters", hidden: true },
      el("h2", {}, "Parameters"), field("Model or adapter", this.model), field("System prompt", this.system),
      field("Reasoning effort", this.effort, "Has an effect if the model's chat template uses it."),
      ...Object.entries(this.numbers).map(([name, input]) => field(name.replaceAll("_", " "), input)));
    this.side = el("aside.side", { id: "conversations", "aria-label": "Conversations" },
      button("New conversation", () => this.fresh(), { kind: "primary" }), this.list,
      el("div.buttons", {}, button("Import", () => this.importFile(), { kind: "quiet" }), button("Export all", () => this.export(this.store.all), { kind: "quiet" })));
    this.heading = el("h1", {}, "New conversation");
    const toggle = (node, label, name) => {
      const control = button(label, () => {
        node.hidden = node === this.parameters ? !node.hidden : node.hidden;
        if (node === this.side) node.classList.toggle("open");
        control.setAttribute("aria-expanded", String(node === this.side ? node.classList.contains("open") : !node.hidden));
      }, { kind: `quiet.${name}`, "aria-expanded": "false", "aria-controls": node.id });
      return control;
    };
    this.sideToggle = toggle(this.side, "Conversations", "for-side");
    this.element = el("section.view.chat", { "aria-label": "Chat" }, this.side,
      el("div.column", {}, el("div.bar", {}, this.sideToggle, this.heading,
        el("div.buttons", {}, button("Try it", () => this.tryIt(), { kind: "quiet" }),
          button("Export", () => this.export([this.current]), { kind: "quiet" }), toggle(this.parameters, "Parameters", "for-parameters"))),
      this.scroller, this.composer), this.parameters);
  }

  async loadModels() {
    try {
      this.models = (await json("../v1/models")).data.slice(0, 500);
    } catch (error) {
      toast(error.message);
    }
    this.model.replaceChildren(...this.models.map((model) =>
      el("option", { value: model.id }, visible(model.id) + (model.parent ? ` (adapter of ${visible(model.parent)})` : ""))));
    this.fill();
  }

  // -- conversations

  open(conversation) {
    this.current = conversation;
    this.fill();
    this.draw();
    this.drawList();
    this.side.classList.remove("open");
    this.sideToggle.setAttribute("aria-expanded", "false");
  }

  fresh() {
    const { model, system, sampling } = this.current;
    this.open(new Conversation({ model, system, sampling: { ...sampling } }));
    this.input.focus();
  }

  change(fields) {
    Object.assign(this.current, fields);
    this.store.save();
  }

  sample(name, value) {
    const sampling = { ...this.current.sampling };
    if (value === "") delete sampling[name];
    else sampling[name] = name in NUMBERS ? Number(value) : value;
    this.change({ sampling });
  }

  fill() {
    const { model, system, sampling } = this.current;
    this.model.value = this.models.some((each) => each.id === model) ? model : this.models[0]?.id ?? "";
    this.system.value = system;
    this.effort.value = sampling.reasoning_effort ?? "";
    for (const [name, input] of Object.entries(this.numbers)) input.value = sampling[name] ?? "";
  }

  drawList() {
    this.heading.textContent = visible(this.current.title) || "New conversation";
    this.list.replaceChildren(...this.store.all.map((each) => el("li", {},
      button(visible(each.title) || "Untitled", () => this.open(each), { kind: "entry", "aria-current": each === this.current ? "true" : null }),
      button("×", () => this.remove(each), { kind: "quiet", "aria-label": `Delete ${visible(each.title) || "conversation"}` }))));
  }

  async remove(conversation) {
    if (!await confirm("Delete this conversation?", "It is kept in this browser only and cannot be restored.", "Delete")) return;
    if (conversation === this.current) this.aborter?.abort();
    this.store.remove(conversation);
    if (conversation === this.current) this.open(this.store.all[0] ?? new Conversation());
    else this.drawList();
  }

  export(conversations) {
    download("conversations.json", serialize(conversations));
  }

  importFile() {
    const chooser = el("input", { type: "file", accept: "application/json", onchange: async () => {
      try {
        const count = this.store.import(await chooser.files[0].text());
        toast(`Imported ${count} conversation${count === 1 ? "" : "s"}`);
        this.open(this.store.all[0] ?? this.current);
      } catch (error) {
        toast(`Cannot import: ${error.message}`);
      }
    } });
    chooser.click();
  }

  // -- thread

  draw() {
    const actions = {
      siblings: (node) => this.current.siblings(node),
      show: (node) => { this.current.show(node); this.store.save(); this.draw(); },
      edit: (node, content) => this.ask(this.current.add(node.parent, "user", content)),
      regenerate: (node) => this.ask(this.current.nodes[node.parent]),
    };
    this.messages = this.current.path().map((node) => {
      const known = this.running?.node === node ? this.running : null;
      return known ?? new Message(node, actions);
    });
    this.thread.replaceChildren(...(this.messages.length ? this.messages.map((each) => each.element) : [this.welcome()]));
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  welcome() {
    const prompts = ["What is 17+25?", "Sort these numbers: 42, 7, 19, 3", "Which is larger, 391 or 319?"];
    return el("div.welcome", {}, el("h2", {}, "Talk to the model"),
      el("p", {}, "Answers stream as they are generated. The reasoning is shown while it comes and folds when the answer starts."),
      el("div.chips", {}, prompts.map((prompt) => button(prompt, () => { this.input.value = prompt; this.submit(); }, { kind: "chip" }))));
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, 240)}px`;
  }

  submit() {
    const content = this.input.value.trim();
    if (!content || this.aborter) return;
    this.input.value = "";
    this.grow();
    this.ask(this.current.add(this.current.leaf, "user", content));
  }

  body(leaf) {
    return { model: this.model.value, messages: this.current.messages(leaf), stream: true, stream_options: { include_usage: true }, ...this.current.sampling };
  }

  // Prices of a model; an adapter has those of its base model.
  prices(name) {
    const { prices } = this.session, { parent } = this.models.find((each) => each.id === name) ?? {};
    return Object.hasOwn(prices, name) ? prices[name] : Object.hasOwn(prices, parent ?? "") ? prices[parent] : null;
  }

  // Asks for an answer to a message of the user.
  async ask(node) {
    if (this.aborter) return;
    const conversation = this.current;
    if (!this.store.all.includes(conversation)) this.store.all.unshift(conversation);
    conversation.model = this.model.value;
    const body = this.body(node.id);
    const answer = conversation.add(node.id, "assistant", "");
    this.aborter = new AbortController();
    this.busy(true);
    this.running = null;
    this.draw();
    this.drawList();
    const message = (this.running = this.messages.at(-1));
    message.stream(true);
    await complete(answer, body, {
      session: conversation.id, explain: this.session.explain, prices: this.prices(body.model), signal: this.aborter.signal,
      changed: () => {
        const pinned = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 80;
        message.changed();
        if (pinned && this.current === conversation) requestAnimationFrame(() => { this.scroller.scrollTop = this.scroller.scrollHeight; });
        this.store.save();
      },
    });
    this.aborter = null;
    this.running = null;
    conversation.updated = Date.now();
    message.stream(false);
    this.busy(false);
    this.store.saveNow();
    document.querySelector(".live").textContent = answer.meta.error ? "The answer failed" : "The answer is complete";
  }

  busy(on) {
    this.stop.hidden = !on;
    this.send.hidden = on;
  }

  tryIt() {
    const body = this.current.leaf ? this.body(this.current.path().findLast((node) => node.role === "user")?.id) : this.body(null);
    if (!body.messages.length) body.messages = [{ role: "user", content: "What is 17+25?" }];
    dialog("Try it", snippets(body, this.session));
  }

  focus() {
    this.input.focus();
  }

  shortcut(event) {
    if (event.key === "Escape" && this.aborter) this.aborter.abort();
    else if (event.altKey && event.code === "KeyN") this.fresh();
    else return false;
    return true;
  }
}
