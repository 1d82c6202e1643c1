// Conversations as trees: editing or regenerating adds a branch. Kept in this browser only, each
// under its own key, so that several tabs can write at the same time.

const MAX_CONVERSATIONS = 1000; // of a file
const MAX_NODES = 10_000;
const MAX_TEXT = 2_000_000; // characters of one message
export const MAX_IMPORT = 20_000_000; // characters of a file
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
export const EFFORTS = ["low", "medium", "high"];
const ROLES = new Set(["user", "assistant"]);
const ID = /^\w{1,64}$/;

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Conversation {
  constructor(data = {}) {
    const now = Date.now();
    Object.assign(this, { id: newId(), title: "", created: now, updated: now, model: "", system: "", sampling: {}, nodes: Object.create(null), leaf: null }, data);
  }

  add(parent, role, content) {
    const node = { id: newId(), parent, role, content, reasoning: "", meta: {}, created: Date.now() };
    this.nodes[node.id] = node;
    this.leaf = node.id;
    this.updated = node.created;
    if (!this.title && role === "user") this.title = content.replace(/\s+/g, " ").trim().slice(0, 60);
    return node;
  }

  // Returns the messages from the first to `leaf`.
  path(leaf = this.leaf) {
    const found = [];
    for (let node = this.nodes[leaf]; node; node = this.nodes[node.parent]) found.push(node);
    return found.reverse();
  }

  children(id) {
    return Object.values(this.nodes).filter((each) => each.parent === id).sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  }

  siblings(node) {
    return this.children(node.parent).filter((each) => each.role === node.role);
  }

  // Shows another branch, down to its newest message.
  show(node) {
    for (let at = node; at; at = this.children(at.id).at(-1)) this.leaf = at.id;
  }

  // Returns what is sent to the model. An answer that failed before its first word is left out.
  messages(leaf) {
    const found = this.path(leaf).filter(({ role, content }) => role === "user" || content).map(({ role, content }) => ({ role, content }));
    return this.system ? [{ role: "system", content: this.system }, ...found] : found;
  }

  // Adds the messages of another copy; of messages that both have, the one that got further.
  merge(other) {
    for (const node of Object.values(other.nodes)) {
      const known = this.nodes[node.id];
      if (!known || further(node) > further(known)) this.nodes[node.id] = node;
    }
    if (other.updated > this.updated) ({ title: this.title, updated: this.updated } = other);
    // What was added behind the last message that this copy shows is shown.
    if (!this.leaf || this.path(other.leaf).includes(this.nodes[this.leaf])) this.leaf = other.leaf;
  }
}

export const ended = ({ meta }) => Boolean(meta.finish || meta.error);
const further = (node) => 2 * (node.content.length + node.reasoning.length) + ended(node);

export class Conversations {
  // onChange(conversation): another tab changed it; onFull(): the browser stores no more.
  constructor(tenant, { onChange, onFull }) {
    this.prefix = `moe-console:${encodeURIComponent(tenant)}:`;
    this.onChange = onChange;
    this.onFull = onFull;
    this.all = [];
    this.unsaved = new Set();
    this.timer = 0;
    try {
      for (const key of Object.keys(localStorage)) if (key.startsWith(this.prefix)) this.take(localStorage.getItem(key));
    } catch { /* no storage: conversations last as long as the page */ }
    this.sort();
    this.end = new AbortController();
    addEventListener("storage", (event) => this.changedElsewhere(event), this.end);
    addEventListener("pagehide", () => this.saveNow(), this.end);
  }

  close() {
    this.saveNow();
    this.end.abort();
  }

  sort() {
    this.all.sort((a, b) => b.updated - a.updated);
  }

  // Adds a stored conversation, or merges it into the known one. Returns null if it is malformed.
  take(source) {
    try {
      const found = conversation(JSON.parse(source));
      const known = this.all.find((each) => each.id === found.id);
      if (known) known.merge(found);
      else this.all.push(found);
      return known ?? found;
    } catch {
      return null; // written by something else
    }
  }

  changedElsewhere({ key, newValue, storageArea }) {
    if (storageArea !== localStorage || !key?.startsWith(this.prefix)) return;
    const id = key.slice(this.prefix.length);
    const changed = newValue === null ? this.all.find((each) => each.id === id) : this.take(newValue);
    if (newValue === null) this.all = this.all.filter((each) => each !== changed);
    this.sort();
    if (changed) this.onChange(changed);
  }

  // Saves soon; while an answer streams, at most once per second.
  save(conversation) {
    this.unsaved.add(conversation);
    this.timer ||= setTimeout(() => this.saveNow(), 1000);
  }

  saveNow() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.sort();
    for (const each of this.unsaved) {
      if (!this.all.includes(each)) continue; // deleted meanwhile
      try {
        const stored = localStorage.getItem(this.prefix + each.id);
        if (stored) this.take(stored); // with what another tab added
        localStorage.setItem(this.prefix + each.id, JSON.stringify(each));
      } catch {
        this.onFull();
      }
    }
    this.unsaved.clear();
  }

  remove(conversation) {
    this.all = this.all.filter((each) => each !== conversation);
    try {
      localStorage.removeItem(this.prefix + conversation.id);
    } catch { /* no storage */ }
  }

  // Adds the conversations of an exported file and returns them; throws an Error with the reason if
  // it is not one. A known conversation stays, and its imported copy is added to the list.
  import(source) {
    if (source.length > MAX_IMPORT) throw new Error("the file is larger than 20 MB");
    const found = parse(source);
    for (const each of found) {
      const known = this.all.find((own) => own.id === each.id);
      if (known) each.id = newId();
      this.all.push(each);
      this.save(each);
    }
    this.saveNow();
    return found;
  }
}

export const serialize = (conversations) => JSON.stringify({ format: "moe-serving-console", version: 1, conversations });

function parse(source) {
  let data;
  try {
    data = JSON.parse(source);
  } catch {
    throw new Error("it is not a JSON file");
  }
  if (!Array.isArray(data?.conversations)) throw new Error("it is not an export of this console");
  if (data.conversations.length > MAX_CONVERSATIONS) throw new Error(`it has more than ${MAX_CONVERSATIONS} conversations`);
  return data.conversations.map(conversation);
}

// Reads only the known fields, with their types: a file is as untrusted as an answer.
function conversation(item) {
  const given = Object.values(record(item).nodes ?? {});
  if (given.length > MAX_NODES) throw new Error(`a conversation has more than ${MAX_NODES} messages`);
  const nodes = Object.create(null);
  for (const node of given) {
    if (!isId(node?.id) || !ROLES.has(node.role)) throw new Error("a message is malformed");
    nodes[node.id] = {
      id: node.id, parent: isId(node.parent) ? node.parent : null, role: node.role,
      content: string(node.content), reasoning: string(node.reasoning), created: finite(node.created), meta: meta(record(node.meta ?? {})),
    };
  }
  for (const node of Object.values(nodes)) if (!nodes[node.parent]) node.parent = null;
  checkCycles(nodes);
  const sampling = {}, chosen = record(item.sampling ?? {});
  for (const name of NUMBERS) if (Number.isFinite(chosen[name])) sampling[name] = chosen[name];
  if (EFFORTS.includes(chosen.reasoning_effort)) sampling.reasoning_effort = chosen.reasoning_effort;
  return new Conversation({
    id: isId(item.id) ? item.id : newId(), title: string(item.title).slice(0, 200), created: finite(item.created),
    updated: finite(item.updated), model: string(item.model).slice(0, 300), system: string(item.system), sampling, nodes,
    leaf: nodes[item.leaf] ? item.leaf : Object.keys(nodes).at(-1) ?? null,
  });
}

// Messages whose parents lead back to them have no first message.
function checkCycles(nodes) {
  const sound = new Set();
  for (const start of Object.values(nodes)) {
    const seen = new Set();
    for (let node = start; node && !sound.has(node); node = nodes[node.parent]) {
      if (seen.has(node)) throw new Error("a message follows itself");
      seen.add(node);
    }
    for (const node of seen) sound.add(node);
  }
}

function record(value) {
  if (typeof value !== "object" || value === null) throw new Error("a conversation is malformed");
  return value;
}

const isId = (value) => typeof value === "string" && ID.test(value);
const string = (value) => (typeof value === "string" ? value.slice(0, MAX_TEXT) : "");
const finite = (value) => (Number.isFinite(value) ? value : 0);

function meta(given) {
  const found = {};
  for (const name of ["tokens", "prompt_tokens", "cached_tokens", "ttft", "seconds", "rate", "resumes", "price"]) if (Number.isFinite(given[name])) found[name] = given[name];
  for (const name of ["finish", "error", "model", "id", "currency"]) if (typeof given[name] === "string") found[name] = given[name].slice(0, 500);
  if (Array.isArray(given.why)) found.why = given.why.slice(0, 8);
  return found;
}
