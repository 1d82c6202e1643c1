// @connectrpc/connect-node with the gRPC protocol, on descriptors read at run time.

import { createFileRegistry, fromBinary, fromJson, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { compressionGzip, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { GRPC, main } from "./frame.mjs";
import { CODES, descriptors, RpcFailed } from "./grpc_code.mjs";
import { tryAll } from "./grpc_features.mjs";

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors()));
const jsonOptions = { registry, useProtoFieldName: true };

class Channel {
  constructor({ compressed, maxBytes, ping }) {
    const baseUrl = `http://${GRPC}`;
    const pings = ping && { pingIntervalMs: ping * 1000, pingIdleConnection: true };
    this.session = new Http2SessionManager(baseUrl, pings ?? {});
    this.transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.session,
      ...(compressed
        ? { sendCompression: compressionGzip, compressMinBytes: 0 }
        : { acceptCompression: [] }),
      ...(maxBytes && { readMaxBytes: maxBytes }),
    });
  }

  method(serviceName, name) {
    const service = registry.getService(serviceName);
    const { localName, input, output } = service.methods.find((each) => each.name === name);
    const client = createClient(service, this.transport);
    return {
      make: client[localName],
      read: (request) => fromJson(input, request, jsonOptions),
      show: (answer) => toJson(output, answer, jsonOptions),
    };
  }

  async unary(service, name, request, more) {
    const { make, read, show } = this.method(service, name);
    const came = {};
    const keep = (headers) => headers.forEach((value, key) => (came[key] = value));
    const options = { ...asOptions(more), onHeader: keep, onTrailer: keep };
    try {
      return { answer: show(await make(read(request), options)), metadata: came };
    } catch (error) {
      throw failed(error);
    }
  }

  async *stream(service, name, requests, more) {
    const { make, read, show } = this.method(service, name);
    const messages = requests.map(read);
    const given = name === "ServerReflectionInfo" ? iterated(messages) : messages[0];
    const controller = new AbortController();
    try {
      for await (const answer of make(given, { ...asOptions(more), signal: controller.signal }))
        yield show(answer);
    } catch (error) {
      throw failed(error);
    } finally {
      controller.abort();
    }
  }

  close() {
    this.session.abort();
  }
}

async function* iterated(messages) {
  yield* messages;
}

function asOptions({ metadata, timeout, signal }) {
  const headers = new Headers();
  for (const [key, value] of Object.entries(metadata))
    headers.set(key, Buffer.isBuffer(value) ? value.toString("base64") : value);
  return { headers, timeoutMs: timeout * 1000, signal };
}

function failed(error) {
  if (!(error instanceof ConnectError)) return error;
  const details = error.details.map(({ type, value }) => {
    const name = type.replace("google.rpc.", "");
    const schema = registry.getMessage(`clients.errors.${name}`);
    return { type: name, value: toJson(schema, fromBinary(schema, value), jsonOptions) };
  });
  const code = error.code === Code.Canceled ? "CANCELLED" : CODES[error.code];
  return new RpcFailed(code, error.rawMessage, details);
}

tryAll((options) => new Channel(options));
await main({
  packages: ["@connectrpc/connect-node", "@connectrpc/connect"],
  cannot: { "grpc.blocking": "Node has no blocking clients" },
});
