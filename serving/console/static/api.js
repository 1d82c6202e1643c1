// Calls of the router. The key is sent in a header only, never in an address.

const STORED = "moe-console-key";
let key = sessionStorage.getItem(STORED) ?? "";

export class Failure extends Error {
  constructor(status, message, reason, retryAfter) {
    super(message);
    Object.assign(this, { status, reason, retryAfter });
  }
}

export function signIn(value, keep) {
  key = value;
  if (keep && value) sessionStorage.setItem(STORED, value);
  else sessionStorage.removeItem(STORED);
}

export const signedIn = () => key !== "";

export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
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
    // A key that expired or was removed: the page asks for another one.
    if (error.status === 401) dispatchEvent(new CustomEvent("console:unauthenticated", { detail: error.message }));
    throw error;
  }
  return response;
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch { /* not JSON */ }
  return new Failure(response.status, error.message ?? `status ${response.status}`, error.reason, error.retry_after);
}

export const json = async (path, options) => (await call(path, options)).json();

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
  let stopped = false, attempt = null, delay = 500, timer = 0;
  const connect = async () => {
    attempt = new AbortController();
    try {
      const response = await call(`api/stream?${query}`, { signal: attempt.signal });
      onState("live");
      delay = 500;
      for await (const { event, data } of events(response)) if (event && !stopped) onEvent(event, JSON.parse(data));
    } catch (error) {
      if (error.name === "AbortError") return; // who aborts also connects again
      if (!stopped) onState(error.message);
      if ([400, 401, 403].includes(error.status)) return;
    }
    if (stopped || document.hidden) return;
    onState("reconnecting");
    timer = setTimeout(connect, delay);
    delay = Math.min(delay * 2, 8000);
  };
  const visibility = () => {
    clearTimeout(timer);
    attempt?.abort();
    if (!document.hidden) timer = setTimeout(connect, 50);
  };
  document.addEventListener("visibilitychange", visibility);
  connect();
  return () => {
    stopped = true;
    clearTimeout(timer);
    attempt?.abort();
    document.removeEventListener("visibilitychange", visibility);
  };
}
