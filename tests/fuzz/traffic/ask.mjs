// Requests of released Node clients while their traffic is recorded; see record.py.
// node ask.mjs CLIENT, beside node_modules, with the variables of ask.py.

const { CLIENT_URL: url, CLIENT_GRPC: address, CLIENT_CALLS: calls } = process.env;
const model = "pocket-r1";
const messages = [{ role: "user", content: "What is 17+25? Grüße 🙂" }];

const clients = {
  async "openai-node"() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
    await client.chat.completions.create({ model, messages, max_tokens: 6 });
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 6, stream: true });
    for await (const _ of stream);
  },
  async "anthropic-node"() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
    const stream = await client.messages.create({ model, messages, max_tokens: 6, stream: true });
    for await (const _ of stream);
  },
  async "grpc-js"() {
    const { default: grpc } = await import("@grpc/grpc-js");
    const options = { "grpc.default_authority": "router:80" };
    const client = new grpc.Client(address, grpc.credentials.createInsecure(), options);
    const same = (given) => given;
    for (const [path, streamed, sent] of JSON.parse(calls)) {
      const message = Buffer.from(sent, "hex");
      await new Promise((done) => {
        if (streamed) {
          const call = client.makeServerStreamRequest(path, same, same, message);
          call.on("data", () => {}).on("error", done).on("end", done);
        } else {
          client.makeUnaryRequest(path, same, same, message, done);
        }
      });
    }
    client.close();
  },
};

await clients[process.argv[2]]();
process.exit(0);
