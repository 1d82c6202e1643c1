// Anthropic's SDK for Node.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import {
  ABOUT, ENOUGH, LARGE, PARAMETERS, PIXEL, SYSTEM, TURNS, USER, WAIT, WEATHER_QUESTION, WRITE,
  admitted, caught, checkArguments, retried, watchedFetch,
} from "./cases.mjs";
import { KEY, LONG, MODEL, QUESTION, URL, feature, main, narrowKey, someKey } from "./frame.mjs";

const make = (options = {}) =>
  new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0, timeout: 2 * WAIT, ...options });
const client = make();
const asking = (options = {}) => ({
  model: MODEL, messages: USER, temperature: 0, max_tokens: ENOUGH, ...options,
});
const ask = (options, request) => client.messages.create(asking(options), request);
const endless = {
  model: MODEL,
  messages: [{ role: "user", content: LONG }],
  max_tokens: 1500,
  tools: [{ name: "write", input_schema: WRITE }],
  tool_choice: { type: "tool", name: "write" },
};
const short = (asked) => asked.messages.create(asking({ max_tokens: 1 }));
const isRefusal = (error) => error instanceof Anthropic.RateLimitError;
const blocks = (message) =>
  message.content.map((block) =>
    block.type === "tool_use" ? [block.name, block.input] : [block.type, block[block.type]],
  );
const kinds = (message) => message.content.map((block) => block.type);

// Returns the message that the SDK assembles from a stream; its events must agree.
async function streamed(options) {
  const parts = [];
  const stream = client.messages.stream(asking(options));
  for await (const event of stream) {
    if (event.type !== "content_block_delta") continue;
    const { text, thinking, partial_json } = event.delta;
    parts[event.index] = (parts[event.index] ?? "") + (text ?? thinking ?? partial_json ?? "");
  }
  const message = await stream.finalMessage();
  blocks(message).forEach(([kind, value], i) => {
    if (kind === "text" || kind === "thinking") assert.equal(parts[i], value);
    else assert.deepEqual(JSON.parse(parts[i]), value);
  });
  return message;
}

// -- every client ---------------------------------------------------------------------------------

feature("client.models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  await caught(Anthropic.NotFoundError, client.models.retrieve("claude-9"));
});

async function refused(status, type, words, options) {
  const headers = { "x-request-id": `refused-${crypto.randomUUID()}` };
  const error = await caught(Anthropic.APIError, ask(options, { headers }));
  assert.equal(error.status, status);
  assert.match(error.message, words);
  assert.equal(error.error.type, "error");
  assert.equal(error.error.error.type, type);
  assert.equal(error.requestID, headers["x-request-id"]);
}

feature("client.key", async () => {
  someKey();
  const error = await caught(Anthropic.AuthenticationError, short(make({ apiKey: "moe-wrong" })));
  assert.equal(error.error.error.type, "authentication_error");
  assert.ok(error.requestID);
  assert.ok(await short(make({ apiKey: null, authToken: KEY })));
});
feature("client.model", () => refused(404, "not_found_error", /gpt-9/, { model: "gpt-9" }));
feature("client.parameter", () =>
  refused(400, "invalid_request_error", /max_tokens/, { max_tokens: -1 }));
feature("client.large", () =>
  refused(413, "request_too_large", /./, { messages: [{ role: "user", content: LARGE }] }));

feature("client.unsupported", async () => {
  for (const call of [() => client.messages.batches.list(), () => client.beta.files.list()]) {
    const error = await caught(Anthropic.APIError, call());
    assert.ok([404, 405, 501].includes(error.status), String(error));
  }
  const source = { type: "base64", media_type: "image/png", data: PIXEL };
  const content = [{ type: "image", source }, { type: "text", text: QUESTION }];
  await refused(400, "invalid_request_error", /./, { messages: [{ role: "user", content }] });
});

feature("client.headers", async () => {
  const headers = { "x-request-id": `mine-${crypto.randomUUID()}`, "anthropic-beta": "a-2025-01-01" };
  const { data, request_id } = await ask({ max_tokens: 1 }, { headers }).withResponse();
  assert.equal(request_id, headers["x-request-id"]);
  assert.equal(data._request_id, headers["x-request-id"]);
});

feature("client.timeout", async () => {
  const narrow = make({ apiKey: narrowKey() });
  const late = narrow.messages.create(endless, { timeout: 500 });
  await caught(Anthropic.APIConnectionTimeoutError, late);
  await admitted(() => short(narrow), isRefusal);
});

feature("client.cancel", async () => {
  const narrow = make({ apiKey: narrowKey() });
  for await (const _ of await narrow.messages.create({ ...endless, stream: true })) {
    await caught(Anthropic.RateLimitError, short(narrow));
    break; // closes the stream
  }
  await admitted(() => short(narrow), isRefusal);
});

feature("client.retry", async () => {
  const watch = watchedFetch();
  const narrow = make({ apiKey: narrowKey(), maxRetries: 9, fetch: watch.fetch });
  const stream = await narrow.messages.create({ ...endless, stream: true });
  await stream[Symbol.asyncIterator]().next();
  assert.ok(await retried(() => stream.controller.abort(), () => short(narrow), watch));
});

feature(["client.parallel", "client.async"], async () => {
  const answers = await Promise.all(Array.from({ length: 8 }, () => ask({ max_tokens: 16 })));
  for (const answer of answers) assert.deepEqual(blocks(answer), blocks(answers[0]));
});

// -- messages -------------------------------------------------------------------------------------

feature(["messages.whole", "messages.stream", "messages.thinking"], async () => {
  const message = await ask();
  assert.deepEqual(kinds(message), ["thinking", "text"]);
  assert.equal(message.stop_reason, "end_turn");
  const joined = await streamed();
  assert.deepEqual(blocks(joined), blocks(message));
  assert.equal(joined.stop_reason, message.stop_reason);
  assert.equal(joined.usage.output_tokens, message.usage.output_tokens);
  const cut = await ask({ max_tokens: 4 });
  assert.equal(cut.stop_reason, "max_tokens");
});

feature("messages.thinking_off", async () => {
  const message = await ask({ thinking: { type: "disabled" } });
  assert.deepEqual(kinds(message), ["text"]);
  assert.deepEqual(blocks(await streamed({ thinking: { type: "disabled" } })), blocks(message));
});

feature("messages.thinking_back", async () => {
  const { content } = await ask();
  assert.ok(await ask({ messages: [...USER, { role: "assistant", content }, ...USER], max_tokens: 8 }));
});

feature("messages.system", async () => {
  const tokens = async (options) => (await ask({ ...options, max_tokens: 1 })).usage.input_tokens;
  const plain = await tokens({});
  assert.ok((await tokens({ system: SYSTEM })) > plain);
  assert.ok((await tokens({ system: [{ type: "text", text: SYSTEM }] })) > plain);
  assert.ok((await tokens({ messages: TURNS.slice(1) })) > plain);
});

feature("messages.stop", async () => {
  const word = (await ask()).content.at(-1).text.trim().at(-1);
  const message = await ask({ stop_sequences: [word] });
  assert.deepEqual([message.stop_reason, message.stop_sequence], ["stop_sequence", word]);
  const joined = await streamed({ stop_sequences: [word] });
  assert.deepEqual([blocks(joined), joined.stop_sequence], [blocks(message), word]);
});

const TOOL = { name: "weather", description: ABOUT, input_schema: PARAMETERS, strict: true };
const ASKING = {
  messages: [{ role: "user", content: WEATHER_QUESTION }], tools: [TOOL], max_tokens: 400,
};

feature(["messages.tools", "messages.tools_stream"], async () => {
  for (const tool_choice of [{ type: "any" }, { type: "tool", name: "weather" }]) {
    const message = await ask({ ...ASKING, tool_choice });
    assert.equal(message.stop_reason, "tool_use");
    const calls = message.content.filter((block) => block.type === "tool_use");
    assert.ok(calls.length > 0);
    calls.forEach((call) => checkArguments(call.input));
    assert.deepEqual(blocks(await streamed({ ...ASKING, tool_choice })), blocks(message));
  }
});

feature("messages.tools_back", async () => {
  const { content } = await ask({ ...ASKING, tool_choice: { type: "any" } });
  const results = content
    .filter((block) => block.type === "tool_use")
    .map((call) => ({ type: "tool_result", tool_use_id: call.id, content: "sunny" }));
  const messages = [
    ...ASKING.messages, { role: "assistant", content }, { role: "user", content: results },
  ];
  assert.ok(await ask({ messages, tools: [TOOL], max_tokens: 8 }));
});

feature("messages.count_tokens", async () => {
  for (const options of [{}, { system: SYSTEM }, { tools: [TOOL] }]) {
    const counted = await client.messages.countTokens({ model: MODEL, messages: USER, ...options });
    const { usage } = await ask({ ...options, max_tokens: 1 });
    assert.equal(counted.input_tokens, usage.input_tokens);
  }
});

const OTHER = "supports only Anthropic's API";
await main({
  packages: ["@anthropic-ai/sdk"],
  cannot: { "chat.*": OTHER, "completions.*": OTHER, "responses.*": OTHER },
});
