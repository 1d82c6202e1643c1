// Shared by the client programs for Node: read calls, make them, report their results.
// The counterpart of ../common.py; cases.py describes calls.
"use strict";
const crypto = require("node:crypto");
const fs = require("node:fs");

const SHOWN_KEYS = ["x-grpc-test-", "grpc-status-details-bin"];
const SHOWN_WHOLE = 64;
const ATTEMPTS = 200;
const CODES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
  "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
  "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
];

function shown(bytes) {
  const buffer = Buffer.from(bytes);
  if (buffer.length <= SHOWN_WHOLE) return buffer.toString("base64");
  const hash = crypto.createHash("sha256").update(buffer).digest("hex").slice(0, 16);
  return `${buffer.length} bytes, ${hash}`;
}

// Metadata as pairs of key and text; values of keys in -bin as base64 with its padding.
function kept(pairs) {
  const found = new Map();
  for (const [key, value] of pairs) {
    if (!SHOWN_KEYS.some((each) => key.startsWith(each))) continue;
    let text = Buffer.isBuffer(value) ? value.toString("base64") : value;
    if (key.endsWith("-bin")) text += "=".repeat((4 - (text.length % 4)) % 4);
    found.set(key, found.has(key) ? `${found.get(key)}, ${text}` : text);
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
}

function files(tls) {
  return Object.fromEntries(
    Object.entries(tls ?? {}).map(([name, path]) => [name, fs.readFileSync(path)]),
  );
}

function callOf(raw) {
  return {
    service: "TestService",
    metadata: [],
    timeout: 60,
    answers: [],
    ...raw,
    compressed: (raw.compressed ?? []).some(Boolean),
    requests: raw.requests.map((each) => Buffer.from(each, "base64")),
  };
}

// Requests of a stream as an iterator that waits as the call specifies. `answered(n)` resolves
// after n answers; `ended` at the end of the call.
async function* requestsOf(call, requests, answered, ended) {
  let wanted = 0;
  for (const [number, request] of requests.entries()) {
    yield request;
    if (call.lockstep) {
      wanted += call.answers[number] ?? 0;
      await answered(wanted);
    }
  }
  if (call.unfinished || call.cancel_after !== undefined) await ended;
}

// Counts answers, and resolves promises for a number of them.
class Answers {
  #waiting = [];

  constructor(outcome) {
    this.outcome = outcome;
  }

  got(bytes) {
    this.outcome.replies.push(shown(bytes));
    this.#waiting = this.#waiting.filter(([count, resolve]) => {
      if (this.outcome.replies.length < count) return true;
      resolve();
      return false;
    });
  }

  until(count) {
    if (this.outcome.replies.length >= count) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push([count, resolve]));
  }
}

// `client` has open(target, descriptors) -> channel with perform(call, outcome) and close().
async function run(client, spec) {
  const descriptors = fs.readFileSync(spec.descriptors);
  const one = async (channel, call) => {
    const outcome = { code: "OK", details: "", replies: [], initial: [], trailing: [] };
    try {
      await channel.perform(call, outcome);
    } catch (error) {
      outcome.code = error.name;
      outcome.details = String(error.stack);
    }
    return outcome;
  };
  const step = async (target, channel, raw) => {
    const call = callOf(raw);
    if (raw.fresh) {
      const fresh = client.open(target, descriptors);
      try {
        return await one(fresh, call);
      } finally {
        fresh.close();
      }
    }
    if (raw.again)
      for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
        const outcome = await one(channel, call);
        if (outcome.code === "OK") return outcome;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    const together = Array.from({ length: raw.together ?? 1 }, () => one(channel, call));
    const outcomes = await Promise.all(together);
    const differing = outcomes.filter(
      (each) => JSON.stringify(each) !== JSON.stringify(outcomes[0]),
    );
    return differing.length ? differing : outcomes[0];
  };
  const all = async (target) => {
    const channel = client.open(target, descriptors);
    const found = {};
    try {
      for (const name of target.cases) {
        found[name] = [];
        for (const raw of spec.cases[name]) found[name].push(await step(target, channel, raw));
      }
    } finally {
      channel.close();
    }
    return [target.name, found];
  };
  return Object.fromEntries(await Promise.all(spec.targets.map(all)));
}

async function main(client) {
  const spec = JSON.parse(fs.readFileSync(0, "utf8"));
  // Timers and connections of the library must not delay the exit.
  process.stdout.write(JSON.stringify(await run(client, spec)), () => process.exit());
}

module.exports = { Answers, CODES, files, kept, main, requestsOf };
