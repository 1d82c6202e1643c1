// The request that the page sends, as commands and code.

import { text as bodyOf } from "./api.js";
import { button, copy, download, el, escaped, toast } from "./dom.js";

const shell = (source) => `'${source.replaceAll("'", `'\\''`)}'`;

// Python's literals are those of JSON except for three names.
function python(value, indent = "    ") {
  const literal = (each, margin) => {
    if (each === null) return "None";
    if (typeof each === "boolean") return each ? "True" : "False";
    if (Array.isArray(each)) return `[\n${each.map((item) => `${margin}    ${literal(item, `${margin}    `)},\n`).join("")}${margin}]`;
    if (typeof each === "object") return `{${Object.entries(each).map(([name, item]) => `${escaped(name)}: ${literal(item, margin)}`).join(", ")}}`;
    return escaped(each);
  };
  return Object.entries(value).map(([name, item]) => `${indent}${name}=${literal(item, indent)},`).join("\n");
}

function sources(body, session) {
  const origin = new URL("..", location.href).href.replace(/\/$/, "");
  const { stream_options: _, ...request } = body;
  const { reasoning_effort: effort, messages, model, max_tokens: most, temperature, top_p: topP, seed } = request;
  const auth = session.keys_required ? " \\\n    -H \"authorization: Bearer $MOE_KEY\"" : "";
  const key = session.keys_required ? 'os.environ["MOE_KEY"]' : '"none"';
  const fields = { model, messages: messages.map(({ role, content }) => ({ role: `ROLE_${role.toUpperCase()}`, content })) };
  const sampling = {};
  for (const [name, value] of Object.entries({ max_tokens: most, temperature, top_p: topP, seed })) if (value !== undefined) sampling[name] = value;
  if (Object.keys(sampling).length) fields.sampling = sampling;
  if (effort) fields.reasoning_effort = effort;
  return {
    curl: `curl -sN ${shell(`${origin}/v1/chat/completions`)} -H 'content-type: application/json'${auth} \\\n    -d ${shell(escaped(request))}`,
    Python: `${session.keys_required ? "import os\n\n" : ""}import openai\n\nclient = openai.OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=${key})\nfor chunk in client.chat.completions.create(\n${python(request)}\n):\n    print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    gRPC: `grpcurl ${location.protocol === "https:" ? "" : "-plaintext "}${session.keys_required ? '-H "authorization: Bearer $MOE_KEY" ' : ""}\\\n    -d ${shell(escaped(fields))} \\\n    ${location.hostname}:${session.grpc_port} serving.api.v1.InferenceService/ChatStream`,
  };
}

export function snippets(body, session) {
  return el("div.snippets", {}, Object.entries(sources(body, session)).map(([name, source]) =>
    el("figure.code", {}, el("figcaption", {}, el("span", {}, name), button("Copy", () => copy(source), { kind: "quiet", "aria-label": `Copy ${name}` })),
      el("pre", { tabIndex: 0, "aria-label": name }, el("code", {}, source)))),
  el("p", {}, fileButton("openapi.json", "application/json"), " describes the API over REST.",
    session.admin ? [" ", fileButton("metrics", "text/plain"), " are those of this router, for Prometheus."] : null));
}

// A link cannot send the key, so the page fetches the file.
const fileButton = (name, type) => button(name, async () => {
  try {
    download(name === "metrics" ? "metrics.txt" : name, await bodyOf(`../${name}`), type);
  } catch (error) {
    toast(error.message);
  }
}, { kind: "link", "aria-label": `Download ${name}` });
