// The frame of a client's Node script: features, and results for the runner.
//
// A script tries features with functions, and ends with main():
//
//     feature("chat.stream", async () => { assert.equal(...) });
//     await main({ packages: ["openai"], cannot: { "messages.*": "supports only OpenAI's API" } });
//
// The runner runs a copy of this folder with node_modules beside it. The variables and the lines of
// results are those of the frame in Python.

import { readFileSync, writeSync } from "node:fs";

const env = process.env;
export const URL = env.CLIENT_URL; // REST, without /v1 and without a trailing slash
export const GRPC = env.CLIENT_GRPC; // host:port
export const MODEL = env.CLIENT_MODEL;
export const KEY = env.CLIENT_KEY || "none";
export const QUESTION = "What is 17+25?";
// With ignore_eos its answer has max_tokens tokens.
export const LONG = "Count from 1 to 500.";

const features = new Map();

// The feature is not available on this server; the message is the reason.
export class NotHere extends Error {}

// Registers a function that tries features.
// names: full names as in features.py, one or a list.
// fails: why it cannot work with this client. The function must then fail: once it passes, the
// reason must be removed.
export function feature(names, run, { fails = "" } = {}) {
  for (const name of [names].flat()) {
    if (features.has(name)) throw new Error(`twice: ${name}`);
    features.set(name, { run, fails });
  }
}

// This client's key that admits one request at a time.
export function narrowKey() {
  if (!env.CLIENT_NARROW_KEY)
    throw new NotHere("needs a key that admits one request at a time (no --narrow-key was given)");
  return env.CLIENT_NARROW_KEY;
}

// The key with role admin.
export function adminKey() {
  if (!env.CLIENT_ADMIN_KEY)
    throw new NotHere("needs a key with role admin (no --admin-key was given)");
  return env.CLIENT_ADMIN_KEY;
}

// The client's key, if keys are required.
export function someKey() {
  if (KEY === "none") throw new NotHere("this router asks for no keys");
  return KEY;
}

// Tries all features and reports each to the runner.
// packages: whose versions are reported. cannot: why features are not tried; "group.*" stands for
// those of a group that the script does not try.
export async function main({ packages, cannot }) {
  // Libraries leave promises of closed streams, which must not affect other features.
  process.on("unhandledRejection", (error) => console.error("nobody awaited:", error));
  const fd = Number(env.CLIENT_RESULTS_FD ?? "1");
  const say = (line) => writeSync(fd, JSON.stringify(line) + "\n");
  say({ versions: Object.fromEntries(packages.map((name) => [name, versionOf(name)])) });
  for (const [name, reason] of Object.entries(cannot)) say({ cannot: name, reason });
  const only = new Set((env.CLIENT_FEATURES ?? "").split(",").filter(Boolean));
  const done = new Map();
  for (const [name, { run, fails }] of features) {
    if (only.size && !only.has(name)) continue;
    if (!done.has(run)) done.set(run, await outcome(run, fails));
    say({ feature: name, ...done.get(run) });
  }
  // Open connections must not delay the exit.
  process.exit(0);
}

function versionOf(name) {
  const file = new globalThis.URL(`node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf-8")).version;
}

async function outcome(run, fails) {
  try {
    await run();
  } catch (error) {
    if (error instanceof NotHere) return { status: "reason", reason: error.message };
    if (fails) return { status: "reason", reason: fails };
    const trace = String(error?.stack ?? error);
    return { status: "failed", reason: `${error?.name}: ${error?.message}`, trace };
  }
  if (fails) return { status: "failed", reason: `works now, so this is wrong: ${fails}` };
  return { status: "passed" };
}
