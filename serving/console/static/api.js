// Calls of the router. The key is sent in a header only, never in an address.

import { recall, remember } from "./dom.js";

const STORED = "moe-console-key";
let key = recall("sessionStorage", STORED) ?? "";
let silence = 60_000; // milliseconds without a snapshot or comment after which a stream is taken for lost
let ahead = 0; // seconds by which the router's clock is ahead of this one

export class Failure extends Error {
  constructor(status, message, reason, retryAfter) {
    super(message);
    Object.assign(this, { status, reason, retryAfter });
  }
}

export function signIn(value, keep) {
  key = value;
  remember("sessionStorage", STORED, keep ? value : "");
}

// Takes from a session how often the router writes to a stream, at least every 5 intervals, and its time.
export function follow({ interval, now }) {
  silence = Math.max(20_000, 15_000 * interval);
  ahead = now - Date.now() / 1000;
}

// Returns the router's Unix time in seconds: clocks of browsers may be wrong.
export const routerTime = () => Date.now() / 1000 + ahead;

export const signedIn = () => key !== "";

export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  // A header holds nothing else; fetch would only say that it failed.
  if (!/^[\x21-\x7e]*$/.test(key)) throw unauthenticated(new Failure(401, "This is not an API key: it has a space, or a letter that no key has."));
  if (key) all.authorization = `Bearer ${key}`;
  if (body !== undefined) all["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers: all, signal, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The router cannot be reached.");
  }
  if (!response.ok) {
    const error = await failure(response);
    throw error.status === 401 ? unauthenticated(error) : error;
  }
  return response;
}

// A key that is wrong, expired or removed: the page asks for another one.
function unauthenticated(error) {
  dispatchEvent(new CustomEvent("console:unauthenticated", { detail: error.message }));
  return error;
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch { /* not JSON */ }
  return new Failure(response.status, error.message ?? `status ${response.status}`, error.reason, error.retry_after);
}

export const json = async (path, options) => (await call(path, options)).json();
export const text = async (path) => (await call(path)).text();

const MAX_EVENT = 8 * 1024 * 1024; // characters
// Yields {event, data, comment} of a response's server-sent events.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "message", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      if (rest.length > MAX_EVENT) throw new Failure(0, "The stream sent an event that is too long.");
      let start = 0;
      for (let end; (end = rest.indexOf("\n", start)) >= 0; start = end + 1) {
        const line = rest.slice(start, rest[end - 1] === "\r" ? end - 1 : end);
        if (line === "") {
          if (data.length) yield { event: name, data: data.join("\n") };
          name = "message";
          data = [];
        } else if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
        else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line.startsWith("event:")) name = line.slice(6).trim();
      }
      rest = rest.slice(start);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Reads snapshot feeds until the returned function is called; reconnects, and pauses while hidden.
export function watch(feeds, onEvent, onState = () => {}) {
  const query = feeds.map((name) => `feed=${encodeURIComponent(name)}`).join("&");
  let stopped = false, attempt = null, delay = 500, timer = 0, alarm = 0;
  const connect = async () => {
    const own = (attempt = new AbortController());
    let problem = "the connection ended", silent = false;
    // A network that is cut off without an error is noticed by its silence.
    const heard = () => {
      clearTimeout(alarm);
      alarm = setTimeout(() => { silent = true; own.abort(); }, silence);
    };
    try {
      heard();
      const response = await call(`api/stream?${query}`, { signal: own.signal });
      onState("live");
      delay = 500;
      for await (const { event, data } of events(response)) {
        heard();
        if (event && !stopped) onEvent(event, JSON.parse(data));
      }
    } catch (error) {
      if (error.name === "AbortError" && !silent) return; // who aborts also connects again
      if ([400, 401, 403].includes(error.status)) return stopped || onState(error.message);
      problem = silent ? "the router is silent" : error instanceof Failure ? error.message : "the connection was lost";
    } finally {
      if (attempt === own) clearTimeout(alarm);
    }
    if (stopped || document.hidden) return undefined;
    onState(`reconnecting: ${problem}`);
    timer = setTimeout(connect, delay);
    delay = Math.min(delay * 2, 8000);
    return undefined;
  };
  const pause = () => {
    clearTimeout(timer);
    clearTimeout(alarm);
    attempt?.abort();
  };
  const visibility = () => {
    pause();
    if (!document.hidden) timer = setTimeout(connect, 50);
  };
  document.addEventListener("visibilitychange", visibility);
  connect();
  return () => {
    stopped = true;
    pause();
    document.removeEventListener("visibilitychange", visibility);
  };
}
