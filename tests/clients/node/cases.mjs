// Requests and checks shared by several scripts.

import assert from "node:assert/strict";
import { QUESTION } from "./frame.mjs";

export const WAIT = 60_000; // ms after which an awaited event counts as lost
export const ENOUGH = 300; // max_tokens with which the question is answered completely
export const SYSTEM = "Answer with a number.";
export const USER = [{ role: "user", content: QUESTION }];
export const TURNS = [
  { role: "system", content: SYSTEM },
  { role: "user", content: "What is 1+1?" },
  { role: "assistant", content: "2" },
  ...USER,
];
export const LARGE = "x".repeat(5 * 2 ** 20); // beyond the limit of 4 MiB for bodies
export const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=";
export const SCHEMA = {
  type: "object",
  properties: { answer: { type: "integer", minimum: 0, maximum: 999 } },
  required: ["answer"],
  additionalProperties: false,
};
export const PARAMETERS = {
  type: "object",
  properties: {
    city: { type: "string", enum: ["Bern", "Rome"] },
    days: { type: "integer", minimum: 1, maximum: 9 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};
export const ABOUT = "Weather of a city for some days";
export const WEATHER = {
  type: "function",
  function: { name: "weather", description: ABOUT, strict: true, parameters: PARAMETERS },
};
export const WEATHER_QUESTION = "What is the weather in Bern?";
// Anthropic's API has no ignore_eos: use a tool call that the grammar makes long enough.
export const WRITE = {
  type: "object",
  properties: { text: { type: "string", minLength: 1200 } },
  required: ["text"],
};

export function checkArguments(given) {
  const found = typeof given === "string" ? JSON.parse(given) : given;
  assert.deepEqual(Object.keys(found).sort(), ["city", "days"]);
  assert.ok(["Bern", "Rome"].includes(found.city));
  assert.ok(found.days >= 1 && found.days <= 9);
}

export function checkSchema(text) {
  const found = typeof text === "string" ? JSON.parse(text) : text;
  assert.deepEqual(Object.keys(found), ["answer"]);
  assert.ok(found.answer >= 0 && found.answer <= 999);
}

// Returns the error of a promise, which must fail with an error of this type.
export async function caught(kind, promise) {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof kind, `${error?.name}: ${error?.message}`);
    return error;
  }
  assert.fail(`no ${kind.name}`);
}

// Sends a request with the narrow key until it is admitted, i.e. the previous one has ended.
export async function admitted(ask, isRefusal) {
  const deadline = Date.now() + WAIT;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!isRefusal(error)) throw error;
      assert.ok(Date.now() < deadline, "the request that ended here still runs there");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

// A fetch that records rejections: {fetch, seen, retryAfter}; seen is a promise of the first.
export function watchedFetch() {
  let first;
  const watch = { retryAfter: [], seen: new Promise((resolve) => (first = resolve)) };
  watch.fetch = async (...request) => {
    const response = await fetch(...request);
    if (response.status === 429) {
      watch.retryAfter.push(response.headers.get("retry-after"));
      first();
    }
    return response;
  };
  return watch;
}

// Returns the final result of ask(), which is rejected until release() is called.
export async function retried(release, ask, watch) {
  const answer = ask();
  await Promise.race([watch.seen, answer]);
  assert.ok(watch.retryAfter.length > 0, "nothing was refused");
  await release();
  const found = await answer;
  assert.ok(watch.retryAfter.every(Boolean), "a refusal without Retry-After");
  return found;
}
