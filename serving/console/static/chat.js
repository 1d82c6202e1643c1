// The chat view: conversations, thread, composer and parameters.

import { json } from "./api.js";
import { complete } from "./completion.js";
import { Conversation, Conversations, EFFORTS, MAX_IMPORT, serialize } from "./conversations.js";
import { button, confirm, dialog, download, el, field, toast, visible } from "./dom.js";
import { Message } from "./message.js";
import { snippets } from "./tryit.js";

const NUMBERS = { temperature: [0, 2, 0.05], top_p: [0.01, 1, 0.01], max_tokens: [1, 1e7, 1], seed: [0, 2 ** 32 - 1, 1] };

export class Chat {
  constructor(session) {
    this.session = session;
    this.full = false;
    this.store = new Conversations(session.tenant, { onChange: (conversation) => this.changedElsewhere(conversation), onFull: () => this.storageFull() });
    this.current = this.store.all[0] ?? new Conversation();
    this.runs = new Map(); // conversation to its answer that streams: {node, message, aborter, ended}
    this.models = [];
    this.build();
    this.open(this.current);
  }

  show() {
    this.loadModels(); // adapters come and go
  }

  // Ends what streams: the page continues with another key.
  close() {
    for (const { aborter } of this.runs.values()) aborter.abort();
    this.store.close();
  }

  get run() {
    return this.runs.get(this.current);
  }

  build() {
    this.list = el("ul.conversations");
    this.thread = el("div.thread", { role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.scroller = el("div.scroller", { tabIndex: 0, role: "region", "aria-label": "Messages" }, this.thread);
    this.input = el("textarea", { rows: 1, placeholder: "Ask anything", "aria-label": "Message", enterKeyHint: "send", dir: "auto" });
    this.send = el("button.primary", { type: "submit" }, "Send");
    this.stop = button("Stop", (event) => { if (event.detail < 2) this.run?.aborter.abort(); }, // not by a double click on Send
      { kind: "danger", hidden: true });
    this.composer = el("form.composer", { onsubmit: (event) => { event.preventDefault(); this.submit(); } },
      this.input, el("div.buttons", {}, this.stop, this.send));
    this.input.addEventListener("input", () => this.grow());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.submit(); }
    });
    this.model = el("select", { onchange: () => this.change({ model: this.model.value }) });
    this.system = el("textarea", { rows: 3, oninput: () => this.change({ system: this.system.value }) });
    this.effort = el("select", { onchange: () => this.sample("reasoning_effort", this.effort.value) },
      ["", ...EFFORTS].map((value) => el("option", { value }, value || "default")));
    this.numbers = Object.fromEntries(Object.entries(NUMBERS).map(([name, [min, max, step]]) =>
      [name, el("input", { type: "number", min, max, step: step < 1 ? "any" : step, placeholder: "default", oninput: () => this.sample(name, this.numbers[name].value), onchange: () => this.numbers[name].reportValidity() })]));
    this.parameters = el("aside.parameters", { id: "parameters", "aria-label": "Parameters", hidden: true },
      el("h2", {}, "Parameters"), field("Model or adapter", this.model), field("System prompt", this.system),
      field("Reasoning effort", this.effort, "Takes effect only if the model's chat template uses it."),
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
    this.busy();
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
    this.store.save(this.current);
  }

  changedElsewhere(conversation) {
    this.drawList();
    // A message that is being edited stays.
    if (conversation === this.current && !this.run && !this.thread.querySelector("form")) this.draw();
  }

  storageFull() {
    if (!this.full) toast("This browser stores no more: new messages are lost when the tab closes. Export and delete conversations.");
    this.full = true;
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
    this.runs.get(conversation)?.aborter.abort();
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
        const [file] = chooser.files;
        if (file.size > 4 * MAX_IMPORT) throw new Error("the file is larger than 20 MB");
        const [first, ...others] = this.store.import(await file.text());
        toast(`Imported ${others.length + (first ? 1 : 0)} conversation${first && !others.length ? "" : "s"}`);
        if (first) this.open(first);
      } catch (error) {
        toast(`Cannot import: ${error.message}`);
      }
    } });
    chooser.click();
  }

  // -- thread

  draw() {
    const { run } = this;
    const actions = {
      siblings: (node) => this.current.siblings(node),
      show: (node) => { this.current.show(node); this.store.save(this.current); this.draw(); },
      edit: (node, content) => this.replace(() => this.current.add(node.parent, "user", content)),
      regenerate: (node) => this.replace(() => this.current.nodes[node.parent]),
    };
    this.messages = this.current.path().map((node) => (run?.node === node ? (run.message ??= new Message(node, actions)) : new Message(node, actions)));
    this.thread.replaceChildren(...(this.messages.length ? this.messages.map((each) => each.element) : [this.welcome()]));
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  // Asks again in the middle of a conversation; an answer that still streams there is stopped.
  async replace(question) {
    const conversation = this.current, { run } = this;
    run?.aborter.abort();
    await run?.ended;
    if (conversation === this.current && !this.run) this.ask(question());
  }

  welcome() {
    const prompts = ["What is 17+25?", "Sort these numbers: 42, 7, 19, 3", "Which is larger, 391 or 319?"];
    return el("div.welcome", {}, el("h2", {}, "Talk to the model"),
      el("p", {}, "Answers stream as they are generated. The reasoning is shown while it arrives, and folds when the answer starts."),
      el("div.chips", {}, prompts.map((prompt) => button(prompt, () => { this.input.value = prompt; this.submit(); }, { kind: "chip" }))));
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, 240)}px`;
  }

  submit() {
    const content = this.input.value.trim();
    if (!content || this.run) return;
    this.input.value = "";
    this.grow();
    this.ask(this.current.add(this.current.leaf, "user", content));
  }

  body(leaf) {
    // With the usage in each chunk, an answer that is stopped has a token count, too.
    const stream_options = { include_usage: true, continuous_usage_stats: true };
    return { model: this.model.value || this.session.model, messages: this.current.messages(leaf), stream: true, stream_options, ...this.current.sampling };
  }

  // Prices of a model; an adapter has those of its base model.
  prices(name) {
    const { prices } = this.session, { parent } = this.models.find((each) => each.id === name) ?? {};
    return Object.hasOwn(prices, name) ? prices[name] : Object.hasOwn(prices, parent ?? "") ? prices[parent] : null;
  }

  // Asks for an answer to a message of the user.
  ask(node) {
    const conversation = this.current;
    if (!this.store.all.includes(conversation)) this.store.all.unshift(conversation);
    const body = this.body(node.id);
    conversation.model = body.model;
    const run = { node: conversation.add(node.id, "assistant", ""), message: null, aborter: new AbortController() };
    this.runs.set(conversation, run);
    this.busy();
    this.draw();
    this.drawList();
    this.keepFocus();
    run.ended = this.stream(conversation, run, body);
  }

  async stream(conversation, { node, message, aborter }, body) {
    message.stream(true);
    await complete(node, body, {
      session: conversation.id, explain: this.session.explain, prices: this.prices(body.model), signal: aborter.signal,
      changed: () => {
        const pinned = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 80;
        message.changed();
        if (pinned && this.current === conversation) requestAnimationFrame(() => { this.scroller.scrollTop = this.scroller.scrollHeight; });
        this.store.save(conversation);
      },
    });
    this.runs.delete(conversation);
    conversation.updated = Date.now();
    message.stream(false);
    this.busy();
    this.keepFocus();
    this.store.save(conversation);
    this.store.saveNow();
    document.querySelector(".live").textContent = node.meta.error ? "The answer failed" : "The answer is complete";
  }

  // Takes the focus if the button or field that had it is gone; on telephones this would open the keyboard.
  keepFocus() {
    if (this.element.isConnected && document.activeElement === document.body && matchMedia("(hover: hover)").matches) this.focus();
  }

  busy() {
    this.stop.hidden = !this.run;
    this.send.hidden = Boolean(this.run);
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
    const last = (role) => this.messages.findLast(({ node }) => node.role === role);
    if (event.key === "Escape" && this.run && !event.isComposing) this.run.aborter.abort();
    else if (!event.altKey || event.ctrlKey || event.metaKey) return false;
    else if (event.code === "KeyN") this.fresh();
    else if (event.code === "KeyE") last("user")?.edit();
    else if (event.code === "KeyR" && !this.run) last("assistant")?.regenerate();
    else return false;
    return true;
  }
}
