// Markdown to elements. Every piece of text ends in a text node: nothing is parsed as HTML.
// Images and other embedded content are not loaded; links open only when followed.

import { button, copy, el, visible } from "./dom.js";

const MAX_DEPTH = 10;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^( {0,8})([-*+]|\d{1,9}[.)])(\s+|$)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const DELIMITER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE = /^(?:https?:\/\/|mailto:)/i;

export function markdown(source) {
  const root = document.createDocumentFragment();
  blocks(source.split(/\r?\n/), root, 0);
  return root;
}

// Renders a growing text: finished blocks are built once, only the last ones again.
export class GrowingMarkdown {
  constructor(node) {
    this.node = node;
    this.source = "";
    this.done = 0; // characters whose blocks are final
    this.tail = [];
  }

  update(source) {
    const cut = stablePrefix(source, this.done);
    for (const node of this.tail) node.remove();
    if (cut > this.done) {
      this.node.append(markdown(source.slice(this.done, cut)));
      this.done = cut;
    }
    const last = markdown(source.slice(this.done));
    this.tail = [...last.childNodes];
    this.node.append(last);
  }

  finish(source) {
    this.node.replaceChildren(markdown(source));
  }
}

// Returns the end of the blocks that later text cannot change: the last blank line outside a fence
// that is followed by a line that starts a block of its own.
function stablePrefix(source, from) {
  let fence = "", cut = from, at = from, blank = false;
  for (;;) {
    const end = source.indexOf("\n", at);
    const line = source.slice(at, end < 0 ? source.length : end);
    const found = FENCE.exec(line);
    if (fence) {
      if (found && found[1].startsWith(fence) && !found[2]) fence = "";
    } else {
      if (blank && line.trim() && !/^(?:\s|[-*+]\s|\d+[.)]\s|>)/.test(line)) cut = at;
      if (found) fence = found[1];
    }
    blank = !fence && line.trim() === "";
    if (end < 0) return cut;
    at = end + 1;
  }
}

function blocks(lines, parent, depth) {
  if (depth > MAX_DEPTH) {
    parent.append(el("p", {}, visible(lines.join("\n"))));
    return;
  }
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    let found;
    if (!line.trim()) i += 1;
    else if ((found = FENCE.exec(line))) i = fence(lines, i, found, parent);
    else if ((found = HEADING.exec(line))) {
      const level = Math.min(found[1].length + 2, 6); // the page has h1 and h2
      parent.append(inline(el(`h${level}`), found[2], 0));
      i += 1;
    } else if (RULE.test(line)) {
      parent.append(el("hr"));
      i += 1;
    } else if (/^ {0,3}>/.test(line)) {
      const inner = [];
      while (i < lines.length && lines[i].trim() && (/^ {0,3}>/.test(lines[i]) || inner.length)) {
        inner.push(lines[i].replace(/^ {0,3}> ?/, ""));
        i += 1;
      }
      const quote = el("blockquote");
      blocks(inner, quote, depth + 1);
      parent.append(quote);
    } else if (ITEM.test(line)) i = list(lines, i, parent, depth);
    else if (line.includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && DELIMITER.test(lines[i + 1])) {
      i = table(lines, i, parent);
    } else {
      const inner = [line];
      i += 1;
      while (i < lines.length && lines[i].trim() && !startsBlock(lines[i])) inner.push(lines[i++]);
      parent.append(inline(el("p"), inner.map((each) => each.trimStart()).join("\n"), 0));
    }
  }
}

const startsBlock = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) || ITEM.test(line);

function fence(lines, start, [, mark, info], parent) {
  let i = start + 1;
  const inner = [];
  while (i < lines.length) {
    const end = FENCE.exec(lines[i]);
    if (end && end[1].startsWith(mark) && !end[2].trim()) break;
    inner.push(lines[i++]);
  }
  const source = inner.join("\n");
  const language = info.trim().split(/\s/)[0].slice(0, 24);
  parent.append(el("figure.code", {},
    el("figcaption", {}, el("span", {}, visible(language || "text")),
      button("Copy", () => copy(source), { kind: "quiet", "aria-label": "Copy code" })),
    el("pre", { tabIndex: 0, "aria-label": "Code" }, el("code", {}, visible(source)))));
  return i + 1;
}

function list(lines, start, parent, depth) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(mark);
  const node = el(ordered ? "ol" : "ul");
  if (ordered) node.start = Number.parseInt(mark, 10);
  let i = start;
  while (i < lines.length) {
    const found = ITEM.exec(lines[i]);
    if (!found || found[1].length < indent.length || found[1].length > indent.length + 1
        || /\d/.test(found[2]) !== ordered || RULE.test(lines[i])) break;
    const width = Math.min(found[0].length, indent.length + found[2].length + 4);
    const inner = [lines[i++].slice(found[0].length)];
    while (i < lines.length) {
      const line = lines[i];
      const margin = line.length - line.trimStart().length;
      if (!line.trim()) {
        const next = lines.slice(i + 1, i + 3).find((each) => each.trim());
        if (!next || next.length - next.trimStart().length < Math.min(width, 2)) break;
        inner.push("");
      } else if (margin >= Math.min(width, 2) && margin > indent.length) inner.push(line.slice(Math.min(margin, width)));
      else if (startsBlock(line) || lines[i - 1].trim() === "") break;
      else inner.push(line.trimStart());
      i += 1;
    }
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i += 1;
    const item = el("li");
    blocks(inner, item, depth + 1);
    const only = item.firstElementChild;
    if (only?.tagName === "P") only.replaceWith(...only.childNodes); // tight
    node.append(item);
  }
  parent.append(node);
  return Math.max(i, start + 1);
}

function table(lines, start, parent) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const head = cells(lines[start]);
  const sides = cells(lines[start + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  const row = (kind, values) => el("tr", {}, head.map((_, n) =>
    inline(el(kind, { style: { "text-align": sides[n] ?? "start" } }), values[n] ?? "", 0)));
  const body = el("tbody");
  let i = start + 2;
  while (i < lines.length && lines[i].includes("|") && lines[i].trim()) body.append(row("td", cells(lines[i++])));
  parent.append(el("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Table" }, el("table", {}, el("thead", {}, row("th", head)), body)));
  return i;
}

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

// Appends inline markdown to a node and returns it.
function inline(node, source, depth) {
  let plain = "";
  const closed = new Map(); // marks that have no further end in this text
  const flush = () => {
    if (plain) node.append(visible(plain));
    plain = "";
  };
  const push = (child) => {
    flush();
    node.append(child);
  };
  let i = 0;
  outer: while (i < source.length) {
    const char = source[i];
    if (char === "\\" && i + 1 < source.length && /[\\`*_{}[\]()#+\-.!|~>]/.test(source[i + 1]) && !/[()[\]]/.test(source[i + 1])) {
      plain += source[i + 1];
      i += 2;
      continue;
    }
    if (char === "`") {
      const run = /^`+/.exec(source.slice(i, i + 32))[0];
      const end = closed.get(run) ? -1 : source.indexOf(run, i + run.length);
      if (end >= 0) {
        push(el("code", {}, visible(source.slice(i + run.length, end).trim())));
        i = end + run.length;
      } else {
        closed.set(run, true);
        plain += run;
        i += run.length;
      }
      continue;
    }
    if (char === "\n") {
      if (plain.endsWith("  ") || plain.endsWith("\\")) {
        plain = plain.replace(/\s+$|\\$/, "");
        push(el("br"));
      } else plain += "\n";
      i += 1;
      continue;
    }
    if (depth < MAX_DEPTH && (char === "[" || (char === "!" && source[i + 1] === "["))) {
      const link = closed.get("](") ? null : linkAt(source, char === "!" ? i + 1 : i);
      if (link === undefined) closed.set("](", true);
      else if (link) {
        push(linkNode(link, char === "!", depth));
        i = link.end;
        continue;
      }
    }
    if (depth < MAX_DEPTH && "*_~".includes(char)) {
      for (const [mark, tag] of MARKS) {
        if (!source.startsWith(mark, i) || closed.get(mark)) continue;
        const inWord = mark[0] === "_" && /\w/.test(source[i - 1] ?? "");
        const next = source[i + mark.length];
        if (inWord || next === undefined || /\s/.test(next)) continue;
        let end = source.indexOf(mark, i + mark.length);
        // A single mark must not end inside a double one.
        while (end >= 0 && mark.length === 1 && source[end + 1] === mark) end = source.indexOf(mark, end + 2);
        if (end < 0) closed.set(mark, true);
        else if (!/\s/.test(source[end - 1]) && end > i + mark.length) {
          push(inline(el(tag), source.slice(i + mark.length, end), depth + 1));
          i = end + mark.length;
          continue outer;
        }
      }
    }
    if (char === "h" && /^https?:\/\/[^\s<>"'`)\]]+/.test(source.slice(i, i + 12)) && !/\w/.test(source[i - 1] ?? "")) {
      const url = /^[^\s<>"'`)\]]+/.exec(source.slice(i, i + 2000))[0].replace(/[.,;:!?*_]+$/, "");
      push(anchor(url, [visible(url)]));
      i += url.length;
      continue;
    }
    plain += char;
    i += 1;
  }
  flush();
  return node;
}

function linkAt(source, start) {
  const close = source.indexOf("](", start);
  if (close < 0) return undefined; // nor will a later bracket find one
  if (close - start > 1000) return null;
  const end = source.indexOf(")", close);
  if (end < 0 || end - close > 2000) return null;
  const [target] = source.slice(close + 2, end).trim().split(/\s+/);
  return { label: source.slice(start + 1, close), target: (target ?? "").replace(/^<|>$/g, ""), end: end + 1 };
}

function linkNode({ label, target }, image, depth) {
  const inner = image ? [`${visible(label)} (image, not loaded)`] : [...inline(el("span"), label, depth + 1).childNodes];
  return anchor(target, inner);
}

function anchor(target, children) {
  if (!SAFE.test(target)) return el("span", {}, ...children);
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow", title: visible(target) }, ...children);
}
