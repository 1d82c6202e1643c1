// OpenAI's SDK for Node.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import {
  ABOUT, ENOUGH, LARGE, PARAMETERS, PIXEL, SCHEMA, SYSTEM, TURNS, USER, WAIT, WEATHER,
  WEATHER_QUESTION, admitted, caught, checkArguments, checkSchema, retried, watchedFetch,
} from "./cases.mjs";
import { KEY, LONG, MODEL, QUESTION, URL, feature, main, narrowKey, someKey } from "./frame.mjs";

const make = (options = {}) =>
  new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, maxRetries: 0, timeout: 2 * WAIT, ...options });
const client = make();
const asking = (options = {}) => ({
  model: MODEL, messages: USER, temperature: 0, max_tokens: ENOUGH, ...options,
});
const ask = (options, request) => client.chat.completions.create(asking(options), request);
const endless = () => ({
  model: MODEL,
  messages: [{ role: "user", content: LONG }],
  max_tokens: 1500,
  ignore_eos: true,
});
const short = (asked) => asked.chat.completions.create(asking({ max_tokens: 1 }));
const isRefusal = (error) => error instanceof OpenAI.RateLimitError;

const whole = (completion) =>
  completion.choices.map(({ message, finish_reason, logprobs }) => ({
    content: message.content ?? "",
    reasoning: message.reasoning_content ?? "",
    calls: (message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]),
    finish: finish_reason,
    logprobs: (logprobs?.content ?? []).map((entry) => entry.logprob),
  }));

async function joined(stream) {
  const found = [];
  for await (const chunk of await stream) {
    for (const { index, delta, finish_reason, logprobs } of chunk.choices) {
      found[index] ??= { content: "", reasoning: "", calls: [], finish: null, logprobs: [] };
      const choice = found[index];
      choice.content += delta.content ?? "";
      choice.reasoning += delta.reasoning_content ?? "";
      choice.finish = finish_reason ?? choice.finish;
      choice.logprobs.push(...(logprobs?.content ?? []).map((entry) => entry.logprob));
      for (const call of delta.tool_calls ?? []) {
        choice.calls[call.index] ??= ["", ""];
        choice.calls[call.index][0] += call.function.name ?? "";
        choice.calls[call.index][1] += call.function.arguments ?? "";
      }
    }
  }
  return found;
}

// -- every client ---------------------------------------------------------------------------------

feature("client.models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  const error = await caught(OpenAI.NotFoundError, client.models.retrieve("gpt-9/mini"));
  assert.match(error.message, /gpt-9\/mini/);
});

async function refused(kind, status, words, options) {
  const headers = { "x-request-id": `refused-${crypto.randomUUID()}` };
  const error = await caught(kind, ask(options, { headers }));
  assert.equal(error.status, status);
  assert.match(error.message, words);
  assert.equal(error.requestID, headers["x-request-id"]);
}

feature("client.key", async () => {
  someKey();
  const error = await caught(OpenAI.AuthenticationError, short(make({ apiKey: "moe-wrong" })));
  assert.ok(error.message && error.requestID);
});
feature("client.model", () => refused(OpenAI.NotFoundError, 404, /gpt-9/, { model: "gpt-9" }));
feature("client.parameter", () =>
  refused(OpenAI.BadRequestError, 400, /temperature/, { temperature: -1 }));
feature("client.large", () =>
  refused(OpenAI.APIError, 413, /./, { messages: [{ role: "user", content: LARGE }] }));

feature("client.unsupported", async () => {
  for (const call of [
    () => client.embeddings.create({ model: MODEL, input: "x" }),
    () => client.images.generate({ model: MODEL, prompt: "x" }),
    () => client.files.list(),
    () => client.batches.list(),
  ]) {
    const error = await caught(OpenAI.APIError, call());
    assert.ok([404, 405, 501].includes(error.status), String(error));
  }
});

feature("client.headers", async () => {
  const headers = { "x-request-id": `mine-${crypto.randomUUID()}`, "x-own": "kept" };
  const { data, response, request_id } = await ask({ max_tokens: 1, user: "me" }, { headers })
    .withResponse();
  assert.equal(response.headers.get("x-request-id"), headers["x-request-id"]);
  assert.equal(request_id, headers["x-request-id"]);
  assert.equal(data._request_id, headers["x-request-id"]);
});

feature("client.timeout", async () => {
  const narrow = make({ apiKey: narrowKey() });
  const late = narrow.chat.completions.create(endless(), { timeout: 500 });
  await caught(OpenAI.APIConnectionTimeoutError, late);
  await admitted(() => short(narrow), isRefusal);
});

feature("client.cancel", async () => {
  const narrow = make({ apiKey: narrowKey() });
  const begin = () => narrow.chat.completions.create({ ...endless(), stream: true });
  for await (const _ of await begin()) {
    await caught(OpenAI.RateLimitError, short(narrow));
    break; // closes the stream
  }
  await admitted(() => short(narrow), isRefusal);
  const stream = await admitted(begin, isRefusal);
  await stream[Symbol.asyncIterator]().next();
  stream.controller.abort();
  await admitted(() => short(narrow), isRefusal);
});

feature("client.retry", async () => {
  const watch = watchedFetch();
  const narrow = make({ apiKey: narrowKey(), maxRetries: 9, fetch: watch.fetch });
  const stream = await narrow.chat.completions.create({ ...endless(), stream: true });
  await stream[Symbol.asyncIterator]().next();
  const found = await retried(() => stream.controller.abort(), () => short(narrow), watch);
  assert.equal(found.choices.length, 1);
});

feature("client.parallel", async () => {
  const answers = await Promise.all(Array.from({ length: 8 }, () => ask({ max_tokens: 16 })));
  for (const answer of answers) assert.deepEqual(whole(answer), whole(answers[0]));
});

// -- chat -----------------------------------------------------------------------------------------

feature(
  ["client.async", "chat.whole", "chat.stream", "chat.reasoning", "chat.reasoning_stream"],
  async () => {
    const answer = whole(await ask());
    assert.deepEqual(await joined(ask({ stream: true })), answer);
    const [{ content, reasoning, finish }] = answer;
    assert.ok(content.trim() && reasoning.trim());
    assert.ok(!(content + reasoning).includes("</think>"));
    assert.equal(finish, "stop");
    const final = await client.chat.completions.stream(asking()).finalChatCompletion();
    assert.equal(final.choices[0].message.content, content);
  },
);

feature("chat.usage", async () => {
  const { usage } = await ask();
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  assert.ok(usage.completion_tokens_details.reasoning_tokens > 0);
  let last;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await ask(options)) last = chunk;
  assert.equal(last.usage.completion_tokens, usage.completion_tokens);
  assert.equal(last.usage.prompt_tokens, usage.prompt_tokens);
});

feature("chat.conversation", async () => {
  const longer = await ask({ messages: TURNS, max_tokens: 8 });
  assert.ok(longer.usage.prompt_tokens > (await ask({ max_tokens: 1 })).usage.prompt_tokens);
});

feature("chat.reasoning_back", async () => {
  const { message } = (await ask()).choices[0];
  assert.ok((await ask({ messages: [...USER, message, ...USER], max_tokens: 8 })).choices[0]);
});

feature("chat.parts", async () => {
  const content = [{ type: "text", text: "What is " }, { type: "text", text: "17+25?" }];
  assert.ok((await ask({ messages: [{ role: "user", content }], max_tokens: 8 })).choices[0]);
});

feature("chat.image", () => {
  const content = [
    { type: "text", text: QUESTION },
    { type: "image_url", image_url: { url: `data:image/png;base64,${PIXEL}` } },
  ];
  return refused(OpenAI.BadRequestError, 400, /./, { messages: [{ role: "user", content }] });
});

feature("chat.length", async () => {
  for (const options of [{ max_tokens: 4 }, { max_tokens: undefined, max_completion_tokens: 4 }]) {
    const answer = await ask(options);
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 4);
  }
});

feature("chat.stop", async () => {
  const [{ content, reasoning }] = whole(await ask());
  for (const stop of [["ZZZZ"], [content.trim().at(-1)], [reasoning.slice(5, 8)]]) {
    const found = whole(await ask({ stop }));
    assert.deepEqual(await joined(ask({ stop, stream: true })), found);
    assert.ok(!(found[0].content + found[0].reasoning).includes(stop[0]));
  }
});

feature("chat.n", async () => {
  const options = { n: 2, temperature: 0.8, seed: 3, max_tokens: 12 };
  const found = whole(await ask(options));
  assert.equal(found.length, 2);
  assert.deepEqual(await joined(ask({ ...options, stream: true })), found);
});

feature("chat.logprobs", async () => {
  const options = { logprobs: true, top_logprobs: 3, max_tokens: 6 };
  const found = whole(await ask(options));
  assert.equal(found[0].logprobs.length, 6);
  assert.deepEqual(await joined(ask({ ...options, stream: true })), found);
});

feature("chat.seed", async () => {
  const options = { temperature: 0.9, seed: 7, max_tokens: 12, top_p: 0.9 };
  assert.deepEqual(whole(await ask(options)), whole(await ask(options)));
});

const ASKING = { messages: [{ role: "user", content: WEATHER_QUESTION }], tools: [WEATHER] };

feature("chat.tools_auto", async () => {
  const options = { ...ASKING, tool_choice: "auto", max_tokens: 120 };
  assert.deepEqual(await joined(ask({ ...options, stream: true })), whole(await ask(options)));
});

feature(["chat.tools_required", "chat.tools_named", "chat.tools_stream"], async () => {
  for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
    const options = { ...ASKING, tool_choice, max_tokens: 400 };
    const found = whole(await ask(options));
    assert.ok(found[0].calls.length > 0);
    for (const [name, text] of found[0].calls) {
      assert.equal(name, "weather");
      checkArguments(text);
    }
    assert.deepEqual(await joined(ask({ ...options, stream: true })), found);
  }
});

feature("chat.tools_back", async () => {
  const { message } = (await ask({ ...ASKING, tool_choice: "required", max_tokens: 400 })).choices[0];
  const results = message.tool_calls.map((call) => ({
    role: "tool", tool_call_id: call.id, content: "sunny",
  }));
  const messages = [...ASKING.messages, message, ...results];
  assert.ok((await ask({ messages, tools: [WEATHER], max_tokens: 8 })).choices[0]);
});

feature("chat.json_object", async () => {
  const answer = await ask({ response_format: { type: "json_object" }, max_tokens: 400 });
  assert.match(answer.choices[0].message.content, /^\s*\{/);
});

feature(["chat.json_schema", "chat.json_stream"], async () => {
  const response_format = {
    type: "json_schema", json_schema: { name: "answer", schema: SCHEMA, strict: true },
  };
  const found = whole(await ask({ response_format }));
  checkSchema(found[0].content);
  assert.deepEqual(await joined(ask({ response_format, stream: true })), found);
  const Answer = z.object({ answer: z.number().int().min(0).max(999) });
  const parsed = await client.chat.completions.parse(
    asking({ response_format: zodResponseFormat(Answer, "answer") }),
  );
  checkSchema(parsed.choices[0].message.parsed);
});

// -- completions ----------------------------------------------------------------------------------

const complete = (options) =>
  client.completions.create({
    model: MODEL, prompt: QUESTION, temperature: 0, max_tokens: 24, ...options,
  });

feature(["completions.whole", "completions.stream"], async () => {
  const [{ text }] = (await complete()).choices;
  let joinedText = "";
  for await (const chunk of await complete({ stream: true })) joinedText += chunk.choices[0].text;
  assert.equal(joinedText, text);
});

feature("completions.options", async () => {
  const [{ text }] = (await complete()).choices;
  assert.equal((await complete({ echo: true })).choices[0].text, QUESTION + text);
  const both = await complete({ prompt: [QUESTION, "abc"] });
  assert.deepEqual(both.choices.map((choice) => choice.index), [0, 1]);
  assert.equal((await complete({ logprobs: 2, max_tokens: 4 })).choices[0].logprobs.tokens.length, 4);
  const stop = text.slice(4, 6);
  assert.equal((await complete({ stop: [stop] })).choices[0].text, text.slice(0, text.indexOf(stop)));
});

// -- responses ------------------------------------------------------------------------------------

const TOOL = { type: "function", name: "weather", description: ABOUT, strict: true, parameters: PARAMETERS };
const responding = (options = {}) => ({
  model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: ENOUGH, store: false, ...options,
});
const respond = (options) => client.responses.create(responding(options));
const said = (response) =>
  response.output.map((item) =>
    item.type === "function_call"
      ? [item.name, item.arguments]
      : [item.type, (item.content ?? []).map((part) => part.text).join("")],
  );

feature(["responses.whole", "responses.stream"], async () => {
  const answer = await respond();
  assert.equal(answer.status, "completed");
  assert.deepEqual(said(answer).map(([kind]) => kind), ["reasoning", "message"]);
  assert.equal(answer.output_text, said(answer)[1][1]);
  const events = [];
  for await (const event of await respond({ stream: true })) events.push(event);
  assert.equal(events[0].type, "response.created");
  assert.equal(events.at(-1).type, "response.completed");
  assert.deepEqual(said(events.at(-1).response), said(answer));
  const text = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(text.map((event) => event.delta).join(""), answer.output_text);
  const final = await client.responses.stream(responding()).finalResponse();
  assert.deepEqual(said(final), said(answer));
});

feature("responses.tools", async () => {
  const options = { input: WEATHER_QUESTION, tools: [TOOL], max_output_tokens: 400, tool_choice: "required" };
  const answer = await respond(options);
  const call = answer.output.find((item) => item.type === "function_call");
  checkArguments(call.arguments);
  let last;
  for await (const event of await respond({ ...options, stream: true })) last = event;
  assert.deepEqual(said(last.response), said(answer));
  const input = [
    { role: "user", content: WEATHER_QUESTION },
    ...answer.output,
    { type: "function_call_output", call_id: call.call_id, output: "sunny" },
  ];
  assert.ok(await respond({ input, tools: [TOOL], max_output_tokens: 8 }));
});

feature("responses.json", async () => {
  const format = { type: "json_schema", name: "answer", schema: SCHEMA, strict: true };
  checkSchema((await respond({ text: { format } })).output_text);
});

feature("responses.conversation", async () => {
  const first = await respond({ instructions: SYSTEM });
  const turn = { role: "user", content: QUESTION };
  const second = await respond({ input: [turn, ...first.output, turn], max_output_tokens: 8 });
  const plain = (await respond({ max_output_tokens: 1 })).usage.input_tokens;
  assert.ok(first.usage.input_tokens > plain);
  assert.ok(second.usage.input_tokens > plain);
});

feature("responses.length", async () => {
  const answer = await respond({ max_output_tokens: 5 });
  assert.equal(answer.status, "incomplete");
  assert.equal(answer.incomplete_details.reason, "max_output_tokens");
});

await main({ packages: ["openai"], cannot: { "messages.*": "supports only OpenAI's API" } });
