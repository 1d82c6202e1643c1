// Conversations as trees: editing or regenerating adds a branch. Kept in this browser only.

const MAX_CONVERSATIONS = 100;
const MAX_NODES = 2000;
const MAX_TEXT = 2_000_000; // characters of one message
const MAX_IMPORT = 20_000_000; // characters of a file
const SAMPLING = ["temperature", "top_p", "max_tokens", "seed", "reasoning_effort"];
const ROLES = new Set(["user", "assistant"]);

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Conversation {
  constructor(data = {}) {
    const now = Date.now();
    Object.assign(this, { id: newId(), title: "", created: now, updated: now, model: "", system: "", sampling: {}, nodes: {}, leaf: null }, data);
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
    for (let node = this.nodes[leaf]; node && found.length <= MAX_NODES; node = this.nodes[node.parent]) found.unshift(node);
    return found;
  }

  siblings(node) {
    return Object.values(this.nodes).filter((each) => each.parent === node.parent && each.role === node.role)
      .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  }

  // Shows another branch, down to its newest message.
  show(node) {
    let at = node;
    for (;;) {
      const children = Object.values(this.nodes).filter((each) => each.parent === at.id).sort((a, b) => a.created - b.created);
      if (!children.length) break;
      at = children.at(-1);
    }
    this.leaf = at.id;
  }

  messages(leaf) {
    const found = this.path(leaf).map(({ role, content }) => ({ role, content }));
    return this.system ? [{ role: "system", content: this.system }, ...found] : found;
  }
}

export class Conversations {
  constructor(tenant) {
    this.key = `moe-console:${tenant}`;
    this.all = [];
    this.timer = 0;
    try {
      this.all = parse(localStorage.getItem(this.key) ?? '{"conversations":[]}');
    } catch { /* written by something else: start empty */ }
  }

  // Saves soon; while an answer streams, at most once per second.
  save() {
    this.timer ||= setTimeout(() => this.saveNow(), 1000);
  }

  saveNow() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.all.sort((a, b) => b.updated - a.updated);
    this.all.length = Math.min(this.all.length, MAX_CONVERSATIONS);
    const kept = [...this.all];
    for (;;) {
      try {
        localStorage.setItem(this.key, serialize(kept));
        return kept.length === this.all.length;
      } catch {
        if (kept.length <= 1) return false; // larger than the browser's storage
        kept.pop();
      }
    }
  }

  remove(conversation) {
    this.all = this.all.filter((each) => each !== conversation);
    this.saveNow();
  }

  // Adds the conversations of an exported file; throws an Error with the reason if it is not one.
  import(source) {
    if (source.length > MAX_IMPORT) throw new Error("the file is larger than 20 MB");
    const found = parse(source);
    const known = new Map(this.all.map((each) => [each.id, each]));
    for (const each of found) known.set(each.id, each);
    this.all = [...known.values()];
    this.saveNow();
    return found.length;
  }
}

export const serialize = (conversations) => JSON.stringify({ format: "moe-serving-console", version: 1, conversations });

// Reads only the known fields, with their types: an imported file is as untrusted as model output.
function parse(source) {
  const data = JSON.parse(source);
  if (!Array.isArray(data?.conversations)) throw new Error("not an export of this console");
  return data.conversations.slice(0, MAX_CONVERSATIONS).map((item) => {
    const nodes = Object.create(null);
    for (const node of Object.values(item.nodes ?? {}).slice(0, MAX_NODES)) {
      if (typeof node?.id !== "string" || !/^\w{1,64}$/.test(node.id) || !ROLES.has(node.role)) throw new Error("a message is malformed");
      nodes[node.id] = {
        id: node.id, parent: typeof node.parent === "string" ? node.parent : null, role: node.role,
        content: string(node.content), reasoning: string(node.reasoning), created: finite(node.created), meta: meta(node.meta),
      };
    }
    const sampling = {};
    for (const name of SAMPLING) if (["string", "number"].includes(typeof item.sampling?.[name])) sampling[name] = item.sampling[name];
    return new Conversation({
      id: /^\w{1,64}$/.test(item.id) ? item.id : newId(), title: string(item.title).slice(0, 200), created: finite(item.created),
      updated: finite(item.updated), model: string(item.model).slice(0, 300), system: string(item.system), sampling, nodes,
      leaf: Object.hasOwn(nodes, item.leaf) ? item.leaf : null,
    });
  });
}

const string = (value) => (typeof value === "string" ? value.slice(0, MAX_TEXT) : "");
const finite = (value) => (Number.isFinite(value) ? value : 0);

function meta(given) {
  const found = {};
  for (const name of ["tokens", "prompt_tokens", "cached_tokens", "ttft", "seconds", "rate", "resumes", "price"]) if (Number.isFinite(given?.[name])) found[name] = given[name];
  for (const name of ["finish", "error", "model", "id", "currency"]) if (typeof given?.[name] === "string") found[name] = given[name].slice(0, 500);
  if (Array.isArray(given?.why)) found.why = given.why.slice(0, 8);
  return found;
}
