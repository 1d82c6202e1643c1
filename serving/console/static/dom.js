// Builds elements. Text from outside is only ever set as text, after `visible`.

// Control characters, all of Unicode's bidirectional controls, line separators, invisible operators, and
// tags; the flags of England, Scotland and Wales are made of tags and found first.
const HIDDEN = /\u{1f3f4}[\u{e0020}-\u{e007f}]+|[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u180e\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]|\p{Cs}/gu;
const isFlag = (found) => found.startsWith("\u{1f3f4}");

// Returns text in which control and bidirectional characters are shown, not obeyed.
export function visible(text) {
  return String(text ?? "").replace(HIDDEN, (char) => {
    if (isFlag(char)) return char;
    const code = char.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟦U+${code.toString(16).toUpperCase().padStart(4, "0")}⟧`;
  });
}

// Returns JSON in which these characters are escaped, so that a command shows what it does.
export const escaped = (value) => JSON.stringify(value).replace(HIDDEN, (found) =>
  (isFlag(found) ? found : found.split("").map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`).join("")));

// Settings of this browser; without storage they last as long as the page.
export function recall(storage, name) {
  try {
    return globalThis[storage].getItem(name);
  } catch {
    return null;
  }
}

export function remember(storage, name, value) {
  try {
    if (value) globalThis[storage].setItem(name, value);
    else globalThis[storage].removeItem(name);
  } catch { /* no storage, or it is full */ }
}

// el("button.primary", {type: "button", onclick: f}, "text", child, …)
export function el(kind, props = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  set(node, props);
  node.append(...children.flat(2).filter((child) => child != null && child !== false));
  return node;
}

export function set(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value == null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name in node && !name.startsWith("aria") && name !== "list") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Replaces the text of a node only if it differs, so that unchanged nodes cost no layout.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
  return node;
}

export function button(label, onclick, props = {}) {
  const kind = props.kind ? `button.${props.kind}` : "button";
  delete props.kind;
  return el(kind, { type: "button", onclick, ...props }, label);
}

export function field(label, input, hint) {
  input.id ||= `field-${(field.count = (field.count ?? 0) + 1)}`;
  return el("div.field", {}, el("label", { htmlFor: input.id }, label), input, hint && el("small", {}, hint));
}

export function toast(message) {
  const box = document.querySelector(".toasts");
  const note = el("p", {}, visible(message));
  box.append(note);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(() => note.remove(), 6000);
}

export async function copy(source) {
  try {
    await navigator.clipboard.writeText(source);
  } catch {
    // No clipboard on plain http: select a hidden field and copy.
    const area = el("textarea.offscreen", { value: source });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

// Opens a modal dialog and resolves with its return value; "" when it was dismissed.
export function dialog(title, content, buttons = [["Close", "", "primary"]]) {
  return new Promise((resolve) => {
    const box = el("dialog", { "aria-labelledby": "dialog-title" },
      el("h2", { id: "dialog-title" }, title), content,
      el("div.buttons", {}, buttons.map(([label, value, kind]) =>
        button(label, () => box.close(value), { kind: kind || "plain" }))));
    box.addEventListener("close", () => { box.remove(); resolve(box.returnValue); });
    document.body.append(box);
    box.showModal();
  });
}

export async function confirm(title, explanation, label) {
  return await dialog(title, el("p", {}, explanation), [["Cancel", ""], [label, "yes", "danger"]]) === "yes";
}

export function download(name, content, type = "application/json") {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export function number(value, digits = 0) {
  return Number(value).toLocaleString("en", { maximumFractionDigits: digits });
}

export function compact(value) {
  return Number(value).toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
}

export function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  if (value < 172800) return `${Math.floor(value / 3600)} h ${Math.floor(value % 3600 / 60)} min`;
  return `${Math.floor(value / 86400)} days`;
}
