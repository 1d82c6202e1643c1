// One streamed answer of /v1/chat/completions.

import { call, events, Failure } from "./api.js";
import { seconds } from "./dom.js";

const LOST = "The connection to the router was lost before the answer was complete.";

// Streams an answer into `node`; calls `changed` after each part. Returns when it has ended.
export async function complete(node, body, { session, explain, prices, signal, changed }) {
  const started = performance.now();
  const meta = (node.meta = { model: body.model, id: crypto.randomUUID?.() ?? `${Date.now()}` });
  let first = 0, last = 0, parts = 0;
  try {
    const headers = { "x-request-id": meta.id, "x-session-id": session };
    if (explain) headers["x-explain-routing"] = "1";
    const response = await call("../v1/chat/completions", { method: "POST", body, headers, signal });
    read(meta, "why", response.headers.get("x-explain-routing"));
    for await (const { data, comment } of events(response)) {
      if (comment !== undefined) {
        if (comment.startsWith("x-resumed ")) meta.resumes = Number(comment.slice(10)) || 1;
        else if (comment.startsWith("x-explain-routing ")) read(meta, "why", comment.slice(18));
        else continue;
        changed();
        continue;
      }
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(chunk.error.code, chunk.error.message, chunk.error.reason, chunk.error.retry_after);
      const choice = chunk.choices?.[0];
      const delta = choice?.delta ?? {};
      const thought = delta.reasoning ?? delta.reasoning_content ?? "";
      if (thought || delta.content) {
        last = performance.now();
        first ||= last;
        parts += 1;
        node.reasoning += thought;
        node.content += delta.content ?? "";
        meta.ttft = (first - started) / 1000;
        meta.rate = parts > 1 && last > first ? (1000 * (parts - 1)) / (last - first) : 0;
      }
      if (choice?.finish_reason) meta.finish = choice.finish_reason;
      if (chunk.usage) usage(meta, chunk.usage, last - first, prices);
      changed();
    }
    if (!meta.finish) meta.error = LOST;
  } catch (error) {
    if (error.name === "AbortError") meta.finish = "stopped";
    else meta.error = explained(error);
  }
  meta.seconds = (performance.now() - started) / 1000;
  changed();
}

// The router's own words, with the time after which to try again.
function explained(error) {
  if (!(error instanceof Failure)) return error instanceof SyntaxError ? "The router sent something that is not an answer." : LOST;
  return error.retryAfter >= 1 && !/again/i.test(error.message) ? `${error.message} (try again in ${seconds(error.retryAfter)})` : error.message;
}

function usage(meta, counts, milliseconds, prices) {
  meta.tokens = counts.completion_tokens;
  meta.prompt_tokens = counts.prompt_tokens;
  meta.cached_tokens = counts.prompt_tokens_details?.cached_tokens ?? 0;
  if (prices) {
    const fresh = meta.prompt_tokens - meta.cached_tokens;
    meta.price = (fresh * prices.uncached + meta.cached_tokens * prices.cached + meta.tokens * prices.output) / 1e6;
    meta.currency = prices.currency;
  }
  // A chunk may hold several tokens, so the rate by chunks is replaced.
  if (milliseconds > 0 && meta.tokens > 1) meta.rate = (1000 * (meta.tokens - 1)) / milliseconds;
}

function read(meta, name, source) {
  try {
    if (source) meta[name] = JSON.parse(source);
  } catch { /* cut off by a proxy */ }
}
