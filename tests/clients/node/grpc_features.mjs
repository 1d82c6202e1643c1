// Features tried with the gRPC clients for Node; each provides openChannel({compressed, maxBytes,
// ping}), which returns a channel with
//
// - unary(service, name, request, {metadata, timeout, signal}): { answer, metadata }
// - stream(service, name, requests, the same): an iterator of answers; leaving it cancels the call
// - close()
//
// Requests and answers are plain objects in protobuf's JSON form, with names as in the proto files.
// Failures are RpcFailed.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { adminKey, feature, KEY, LONG, MODEL, narrowKey, QUESTION, someKey } from "./frame.mjs";
import { HEALTH, INFERENCE, RpcFailed } from "./grpc_code.mjs";

const WAIT = 60; // seconds after which an awaited event counts as lost
const SCHEMA = {
  type: "object",
  properties: { answer: { type: "integer", minimum: 0, maximum: 999 } },
  required: ["answer"],
  additionalProperties: false,
};
const WEATHER = {
  name: "weather",
  description: "Weather",
  strict: true,
  parameters_json: JSON.stringify({
    type: "object",
    properties: {
      city: { type: "string", enum: ["Bern", "Rome"] },
      days: { type: "integer", minimum: 1, maximum: 9 },
    },
    required: ["city", "days"],
    additionalProperties: false,
  }),
};

const user = (content = QUESTION) => ({ role: "ROLE_USER", content });
const chat = ({ sampling, max_tokens = 300, ...more } = {}) => ({
  model: MODEL,
  messages: [user()],
  sampling: { temperature: 0, max_tokens, ...sampling },
  ...more,
});
const long = (max_tokens = 1500) =>
  chat({ messages: [user(LONG)], max_tokens, sampling: { ignore_eos: true } });
const withKey = (key, more = {}) =>
  key === "none" ? more : { authorization: `Bearer ${key}`, ...more };
const options = ({ key = KEY, timeout = WAIT, metadata, signal } = {}) => ({
  metadata: withKey(key, metadata),
  timeout,
  signal,
});

class Api {
  constructor(channel) {
    this.channel = channel;
  }

  async call(name, request, more) {
    return (await this.channel.unary(INFERENCE, name, request, options(more))).answer;
  }

  async all(name, request, more) {
    const parts = [];
    for await (const part of this.channel.stream(INFERENCE, name, [request], options(more)))
      parts.push(part);
    return parts;
  }

  async joined(request) {
    return joined(await this.all("ChatStream", request));
  }
}

// The compared content of an answer, complete or streamed.
function summary(answer) {
  return {
    usage: { ...answer.usage, cached_tokens: 0 },
    prompt: (answer.prompt_token_ids ?? []).map(Number),
    choices: answer.choices.map((choice) => ({
      index: choice.index ?? 0,
      role: choice.message.role,
      content: choice.message.content ?? "",
      reasoning: choice.message.reasoning_content ?? "",
      tools: (choice.message.tool_calls ?? []).map((call) => {
        assert.ok(call.id);
        return [call.function.name, call.function.arguments_json];
      }),
      finish: choice.finish_reason,
      stop: choice.stop_reason ?? "",
      logprobs: (choice.logprobs ?? []).map((each) => [
        each.token ?? "", (each.logprob ?? 0).toFixed(2), (each.top ?? []).length,
      ]),
      ids: (choice.token_ids ?? []).map(Number),
    })),
  };
}

function joined(parts) {
  const choices = new Map();
  const whole = { prompt_token_ids: [], choices: [] };
  for (const part of parts) {
    whole.prompt_token_ids.push(...(part.prompt_token_ids ?? []));
    if (part.usage) {
      assert.equal(part, parts.at(-1));
      whole.usage = part.usage;
    }
    for (const delta of part.choices ?? []) {
      const index = delta.index ?? 0;
      if (!choices.has(index))
        choices.set(index, {
          index,
          message: { content: "", reasoning_content: "", tool_calls: [] },
          stop_reason: "",
          logprobs: [],
          token_ids: [],
        });
      join(choices.get(index), delta);
    }
  }
  whole.choices = [...choices.values()].sort((a, b) => a.index - b.index);
  return whole;
}

function join(choice, delta) {
  const { message } = choice;
  if (delta.role && delta.role !== "ROLE_UNSPECIFIED") message.role = delta.role;
  message.content += delta.content ?? "";
  message.reasoning_content += delta.reasoning_content ?? "";
  for (const piece of delta.tool_calls ?? []) {
    const index = piece.index ?? 0;
    message.tool_calls[index] ??= { id: "", function: { name: "", arguments_json: "" } };
    const call = message.tool_calls[index];
    call.id += piece.id ?? "";
    call.function.name += piece.function?.name ?? "";
    call.function.arguments_json += piece.function?.arguments_json ?? "";
  }
  if (delta.finish_reason && delta.finish_reason !== "FINISH_REASON_UNSPECIFIED")
    choice.finish_reason = delta.finish_reason;
  choice.stop_reason += delta.stop_reason ?? "";
  choice.logprobs.push(...(delta.logprobs ?? []));
  choice.token_ids.push(...(delta.token_ids ?? []));
}

const same = (streamed, whole) => assert.deepEqual(summary(streamed), summary(whole));

async function refused(code, promise, { words = true } = {}) {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof RpcFailed, error);
    assert.equal(error.code, code, error.message);
    assert.ok(error.words || !words);
    return error;
  }
  throw new Error(`nothing refused; wanted ${code}`);
}

// Wait until the narrow key's slot is free again.
async function admitted(api) {
  for (const until = Date.now() + WAIT * 1000; ; ) {
    try {
      await api.call("Chat", chat({ max_tokens: 2 }), { key: narrowKey() });
      return;
    } catch (error) {
      if (error.code !== "RESOURCE_EXHAUSTED" || Date.now() > until) throw error;
      await sleep(100);
    }
  }
}

const FEATURES = {
  async models(api) {
    const { models } = await api.call("ListModels", {});
    assert.equal(models.length, 1);
    assert.equal(models[0].id, MODEL);
    assert.ok(models[0].max_model_len > 0);
  },

  async whole(api) {
    const { choices, usage } = await api.call("Chat", chat());
    const [{ message, finish_reason }] = choices;
    assert.match(message.content ?? "", /42/);
    assert.ok(message.reasoning_content);
    assert.doesNotMatch(message.content + message.reasoning_content, /think>/);
    assert.equal(finish_reason, "FINISH_REASON_STOP");
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert.ok(usage.reasoning_tokens > 0 && usage.reasoning_tokens < usage.completion_tokens);
  },

  async stream(api) {
    const request = chat({ return_token_ids: true });
    const parts = await api.all("ChatStream", request);
    assert.ok(parts.length > 1); // the number depends on how fast the client reads
    same(joined(parts), await api.call("Chat", request));
  },

  async stop(api) {
    for (const text of ["\n\nZZZZ", "42", "</think>"]) {
      const request = chat({ sampling: { stop: [text] } });
      const answer = await api.call("Chat", request);
      assert.ok(!(answer.choices[0].message.content ?? "").includes(text));
      same(await api.joined(request), answer);
    }
  },

  async n(api) {
    const request = chat({ sampling: { n: 3, temperature: 1, seed: "7" }, max_tokens: 40 });
    const answer = await api.call("Chat", request);
    assert.deepEqual(answer.choices.map((each) => each.index ?? 0), [0, 1, 2]);
    assert.ok(answer.choices.every((each) => each.message.reasoning_content));
    same(await api.joined(request), answer);
  },

  async logprobs(api) {
    const request = chat({ logprobs: true, top_logprobs: 2, max_tokens: 12 });
    const answer = await api.call("Chat", request);
    const { logprobs } = answer.choices[0];
    assert.equal(logprobs.length, answer.usage.completion_tokens);
    assert.ok(logprobs.every((each) => each.top.length >= 2));
    same(await api.joined(request), answer);
  },

  async tools(api) {
    const question = user("What is the weather in Bern?");
    let message;
    for (const tool_choice of [{ mode: "MODE_REQUIRED" }, { function_name: "weather" }]) {
      const request = chat({ messages: [question], tools: [WEATHER], tool_choice, max_tokens: 200 });
      const answer = await api.call("Chat", request);
      message = answer.choices[0].message;
      assert.ok(message.tool_calls.length);
      for (const call of message.tool_calls) {
        assert.equal(call.function.name, "weather");
        const found = JSON.parse(call.function.arguments_json);
        assert.deepEqual(Object.keys(found).sort(), ["city", "days"]);
      }
      same(await api.joined(request), answer);
    }
    const back = message.tool_calls.map(({ id }) => ({
      role: "ROLE_TOOL", tool_call_id: id, content: '{"sky": "blue"}',
    }));
    const messages = [question, message, ...back];
    const again = await api.call("Chat", chat({ messages, tools: [WEATHER], max_tokens: 40 }));
    assert.ok(again.usage.completion_tokens);
  },

  async json(api) {
    const schema = { json_schema: { schema_json: JSON.stringify(SCHEMA) } };
    for (const response_format of [schema, { choices: { values: ["Bern", "Rome"] } }]) {
      const request = chat({ response_format });
      const answer = await api.call("Chat", request);
      const { content } = answer.choices[0].message;
      if (response_format === schema) {
        const found = JSON.parse(content);
        assert.ok(found.answer >= 0 && found.answer <= 999);
      } else assert.match(content, /^(Bern|Rome)$/);
      same(await api.joined(request), answer);
    }
  },

  async complete(api) {
    const text = "1, 2, 3";
    const ids = (await api.call("Tokenize", { model: MODEL, text })).token_ids;
    for (const prompt of [{ text }, { token_ids: { ids } }]) {
      const sampling = { temperature: 0, max_tokens: 16 };
      const request = { model: MODEL, sampling, echo: true, logprobs: 1, ...prompt };
      const answer = await api.call("Complete", request);
      const parts = await api.all("CompleteStream", request);
      assert.ok(parts.length > 1);
      const streamed = parts.flatMap((part) => part.choices ?? []);
      const words = streamed.map((choice) => choice.text ?? "").join("");
      assert.equal(words, answer.choices[0].text);
      const tokens = streamed.flatMap((choice) => choice.logprobs ?? []).map((each) => each.token);
      assert.deepEqual(tokens, answer.choices[0].logprobs.map((each) => each.token));
      assert.equal(parts.at(-1).usage.completion_tokens, answer.usage.completion_tokens);
    }
  },

  async tokenize(api) {
    const text = "Bern ☺ 😈\n";
    const request = { model: MODEL, text, add_special_tokens: false };
    const { token_ids } = await api.call("Tokenize", request);
    assert.equal((await api.call("Detokenize", { model: MODEL, token_ids })).text, text);
    const messages = { messages: [user()] };
    assert.ok((await api.call("Tokenize", { model: MODEL, messages })).token_ids.length);
  },

  async unsupported(api) {
    const error = await refused("UNIMPLEMENTED", api.call("Embed", { model: MODEL, inputs: ["x"] }));
    assert.equal(error.detail("ErrorInfo").reason, "UNSUPPORTED");
  },

  async key(api) {
    someKey();
    for (const key of ["sk-wrong", "none"]) {
      const error = await refused("UNAUTHENTICATED", api.call("Chat", chat(), { key }));
      assert.equal(error.detail("ErrorInfo").domain, "moe-serving");
      await refused("UNAUTHENTICATED", api.all("ChatStream", chat(), { key }));
    }
  },

  async errors(api) {
    const unknown = await refused("NOT_FOUND", api.call("Chat", { ...chat(), model: "gpt-9" }));
    assert.equal(unknown.detail("ErrorInfo").reason, "MODEL_NOT_FOUND");
    const bad = api.call("Chat", chat({ sampling: { top_p: 2 } }));
    const { reason } = (await refused("INVALID_ARGUMENT", bad)).detail("ErrorInfo");
    assert.equal(reason, "INVALID_REQUEST");
    const streamed = api.all("ChatStream", chat({ sampling: { temperature: -1 } }));
    const error = await refused("INVALID_ARGUMENT", streamed);
    const [violation] = error.detail("BadRequest").field_violations;
    assert.equal(violation.field, "sampling.temperature");
  },

  async metadata(api) {
    const more = { "x-request-id": "it-is-mine", "x-session-id": "s", "more-bin": Buffer.from([0, 255]) };
    const given = options({ metadata: more });
    const { answer, metadata } = await api.channel.unary(
      INFERENCE, "Chat", chat({ max_tokens: 4 }), given,
    );
    assert.equal(answer.id, "chatcmpl-it-is-mine");
    assert.equal(metadata["x-request-id"], "it-is-mine");
  },

  async deadline(api) {
    const more = { key: narrowKey(), timeout: 1 };
    await refused("DEADLINE_EXCEEDED", api.call("Chat", long(), more));
    await admitted(api);
    await refused("DEADLINE_EXCEEDED", api.all("ChatStream", long(), more));
    await admitted(api);
  },

  async cancel(api) {
    const key = narrowKey();
    let parts = 0;
    for await (const _ of api.channel.stream(INFERENCE, "ChatStream", [long()], options({ key })))
      if (++parts === 2) break;
    await admitted(api);
    const controller = new AbortController();
    const call = api.call("Chat", long(), { key, signal: controller.signal });
    setTimeout(() => controller.abort(), 500);
    await assert.rejects(call);
    await admitted(api);
  },

  async parallel(api) {
    const requests = Array.from({ length: 8 }, (_, n) =>
      chat({ messages: [user(`What is ${n}+25?`)], max_tokens: 16 }),
    );
    const oneByOne = [];
    for (const request of requests) oneByOne.push(await api.call("Chat", request));
    const together = await Promise.all([
      ...requests.map((request) => api.call("Chat", request)),
      ...requests.map((request) => api.joined(request)),
    ]);
    together.forEach(({ usage }, n) => {
      assert.equal(usage.prompt_tokens, oneByOne[n % 8].usage.prompt_tokens);
      assert.equal(usage.completion_tokens, oneByOne[n % 8].usage.completion_tokens);
    });
  },

  async compression(api) {
    const request = chat({ max_tokens: 40, return_token_ids: true });
    same(await api.joined(request), await api.call("Chat", request));
    const text = "x ".repeat(20_000);
    assert.ok((await api.call("Tokenize", { model: MODEL, text })).token_ids.length > 10_000);
  },

  async large(api) {
    const text = "Bern ".repeat(200_000); // 1 MB; its answer has the same size
    assert.ok((await api.call("Tokenize", { model: MODEL, text })).token_ids.length > 200_000);
    const over = { model: MODEL, text: "x".repeat(5 * 2 ** 20) };
    await refused("RESOURCE_EXHAUSTED", api.call("Tokenize", over));
    await api.call("ListModels", {});
  },

  async own_limit(api) {
    const text = "Bern ".repeat(2000);
    await refused("RESOURCE_EXHAUSTED", api.call("Tokenize", { model: MODEL, text }));
    await api.call("ListModels", {});
  },

  async ping(api) {
    assert.equal((await api.joined(long(300))).usage.completion_tokens, 300);
    await sleep(2500); // also without a call
    await api.call("ListModels", {});
  },

  async health(api) {
    const open = { metadata: {}, timeout: WAIT };
    for (const service of ["", INFERENCE]) {
      const { answer } = await api.channel.unary(HEALTH, "Check", { service }, open);
      assert.equal(answer.status, "SERVING");
      for await (const { status } of api.channel.stream(HEALTH, "Watch", [{ service }], open)) {
        assert.equal(status, "SERVING");
        break;
      }
    }
    const unknown = api.channel.unary(HEALTH, "Check", { service: "other" }, open);
    await refused("NOT_FOUND", unknown, { words: false }); // gRPC's own servicer returns none
  },

  async reflection(api) {
    for (const version of ["v1", "v1alpha"]) {
      const service = `grpc.reflection.${version}.ServerReflection`;
      const requests = [{ list_services: "" }, { file_containing_symbol: INFERENCE }];
      const answers = [];
      const answered = api.channel.stream(
        service, "ServerReflectionInfo", requests, options({ key: adminKey() }),
      );
      for await (const each of answered) answers.push(each);
      const names = answers[0].list_services_response.service.map((each) => each.name);
      assert.ok(names.includes(INFERENCE));
      assert.ok(answers[1].file_descriptor_response.file_descriptor_proto.length);
    }
  },
};

const OPTIONS = {
  compression: { compressed: true },
  own_limit: { maxBytes: 1000 },
  ping: { ping: 1 },
};

// Register all features with the frame, except some.
export function tryAll(openChannel, without = []) {
  for (const [name, run] of Object.entries(FEATURES))
    if (!without.includes(name))
      feature(`grpc.${name}`, async () => {
        const channel = openChannel(OPTIONS[name] ?? {});
        try {
          await run(new Api(channel));
        } finally {
          channel.close();
        }
      });
}
