// Start: sign-in, views, theme and keyboard.

import { Failure, follow, json, signIn, signedIn } from "./api.js";
import { Chat } from "./chat.js";
import { button, dialog, el, field, recall, remember, text, toast, visible } from "./dom.js";

const VIEWS = [
  { name: "chat", label: "Chat", allowed: (who) => who.chat, load: async (who) => new Chat(who) },
  { name: "fleet", label: "Fleet", allowed: (who) => who.admin, load: async (who) => new (await import("./fleet.js")).Fleet(who) },
  { name: "requests", label: "Requests", allowed: (who) => who.chat, load: async (who) => new (await import("./requests.js")).Requests(who) },
  { name: "experts", label: "Experts", allowed: (who) => who.admin, load: async (who) => new (await import("./experts.js")).Experts(who) },
  { name: "load", label: "Load", allowed: (who) => who.admin, load: async (who) => new (await import("./timeline.js")).Timeline(who) },
  { name: "cost", label: "Cost", allowed: (who) => who.ledger && who.chat, load: async (who) => new (await import("./cost.js")).Cost(who) },
  { name: "batches", label: "Batches", allowed: (who) => who.batches && who.chat, load: async (who) => new (await import("./batches.js")).Batches(who) },
];
const SHORTCUTS = [
  ["Enter", "Send the message"], ["Shift + Enter", "New line"], ["Esc", "Stop the answer, cancel an edit"], ["/", "Go to the message field"],
  ["Alt + N", "New conversation"], ["Alt + E", "Edit the last message"], ["Alt + R", "Regenerate the last answer"], ["Alt + 1 … 7", "Switch views"], ["?", "This list"],
];

const main = document.querySelector("main");
const nav = document.querySelector("nav.tabs");
const action = (name) => document.querySelector(`[data-action=${name}]`);
const loaded = new Map();
let who = null, shown = null, turn = 0;

function theme(choice) {
  if (choice) remember("localStorage", "moe-console-theme", choice);
  const value = choice ?? recall("localStorage", "moe-console-theme") ?? "auto";
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
  action("theme").setAttribute("aria-label", `Theme: ${value}`);
  return value;
}

function signInForm(problem) {
  nav.hidden = true;
  action("sign-out").hidden = true;
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: false, required: true, "aria-describedby": "problem" });
  const keep = el("input", { type: "checkbox", checked: true, id: "keep" });
  const form = el("form.sign-in", { onsubmit: async (event) => {
    event.preventDefault();
    signIn(input.value.trim(), keep.checked);
    await start();
  } },
  el("h1", {}, "Sign in"), el("p", {}, "This router requires an API key."), field("API key", input),
  el("div.check", {}, keep, el("label", { htmlFor: "keep" }, "Keep it until this tab is closed")),
  el("p.error", { id: "problem", role: "alert" }, problem ? visible(problem) : ""),
  el("button.primary", { type: "submit" }, "Sign in"));
  main.replaceChildren(form);
  input.focus();
}

// Puts a notice where a view would be.
function notice(title, problem, ...more) {
  main.replaceChildren(el("div.sign-in", {}, el("h1", {}, title), el("p.error", { role: "alert" }, visible(problem)), ...more));
}

function leave() {
  turn += 1;
  shown?.hide?.();
  shown = null;
}

async function start() {
  // Another key may belong to another tenant.
  leave();
  for (const view of loaded.values()) view.close?.();
  loaded.clear();
  try {
    who = await json("api/session");
  } catch (error) {
    who = null;
    if (error instanceof Failure && error.status === 401) return undefined; // the form is shown
    return notice("Not available", error.message, button("Try again", start, { kind: "primary" }));
  }
  follow(who);
  action("sign-out").hidden = !signedIn();
  const views = VIEWS.filter((view) => view.allowed(who));
  nav.replaceChildren(...views.map((view) => el("a", { href: `#${view.name}` }, view.label)));
  nav.hidden = false;
  return show();
}

async function show() {
  if (!who) return undefined;
  leave();
  const own = turn, views = VIEWS.filter((view) => view.allowed(who));
  const view = views.find((each) => each.name === location.hash.slice(1)) ?? views[0];
  if (!view) return notice("Nothing to show", "This key has neither role user nor role admin.");
  for (const link of nav.children) {
    if (link.hash === `#${view.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    if (!loaded.has(view.name)) {
      const made = await view.load(who);
      if (own !== turn) return undefined; // another view was chosen while this one loaded
      loaded.set(view.name, made);
    }
  } catch {
    if (own !== turn) return undefined;
    return notice("Not available", "The router cannot be reached.", button("Try again", () => location.reload(), { kind: "primary" }));
  }
  shown = loaded.get(view.name);
  document.title = `${view.label} · moe-serving`;
  main.replaceChildren(shown.element);
  shown.show?.();
  nav.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (matchMedia("(hover: hover)").matches) shown.focus?.();
  return undefined;
}

function keyboard(event) {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, textarea, select");
  const number = event.altKey && !event.ctrlKey && /^Digit(\d)$/.exec(event.code)?.[1];
  if (number && nav.children[number - 1]) {
    event.preventDefault();
    nav.children[number - 1].click();
  } else if (shown?.shortcut?.(event)) event.preventDefault();
  else if (!typing && !event.ctrlKey && !event.metaKey && event.key === "/") {
    event.preventDefault();
    shown?.focus?.();
  } else if (!typing && event.key === "?") keys();
}

const keys = () => dialog("Keyboard", el("dl.keys", {}, SHORTCUTS.flatMap(([key, does]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, does)])));

action("theme").addEventListener("click", () => {
  const order = ["auto", "light", "dark"];
  toast(`Theme: ${theme(order[(order.indexOf(theme()) + 1) % 3])}`);
  shown?.repaint?.();
});
action("keys").addEventListener("click", keys);
action("sign-out").addEventListener("click", () => {
  signIn("", false);
  leave();
  who = null;
  location.hash = "";
  location.reload();
});
document.addEventListener("keydown", keyboard);
addEventListener("hashchange", show);
addEventListener("console:unauthenticated", ({ detail }) => {
  if (document.querySelector("form.sign-in")) return text(document.querySelector("#problem"), visible(detail));
  leave();
  who = null;
  return signInForm(signedIn() ? detail : "");
});
theme();
start();
