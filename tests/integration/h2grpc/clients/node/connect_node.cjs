// @connectrpc/connect-node with the gRPC protocol, on descriptors read at run time.
"use strict";
const { createFileRegistry, fromBinary, toBinary } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = require("@connectrpc/connect");
const {
  compressionGzip,
  createGrpcTransport,
  Http2SessionManager,
} = require("@connectrpc/connect-node");
const { Answers, CODES, files, kept, main, requestsOf } = require("./common.cjs");

class Channel {
  constructor({ address, tls }, descriptors) {
    const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
    const baseUrl = `${tls ? "https" : "http"}://${address}`;
    this.session = new Http2SessionManager(baseUrl, {}, files(tls));
    const clients = [null, compressionGzip].map((sendCompression) => {
      const transport = createGrpcTransport({
        baseUrl,
        sessionManager: this.session,
        sendCompression,
        compressMinBytes: 0,
      });
      return (name) => {
        const service = registry.getService(`interop.v1.${name}`);
        return [service, createClient(service, transport)];
      };
    });
    this.client = (name, compressed) => clients[Number(compressed)](name);
  }

  close() {
    this.session.abort();
  }

  async perform(call, outcome) {
    const [service, client] = this.client(call.service, call.compressed);
    const definition = service.methods.find((each) => each.name === call.method);
    const { input, output, localName, methodKind } = definition;
    const requests = call.requests.map((each) => fromBinary(input, each));
    const answers = new Answers(outcome);
    const got = (message) => answers.got(toBinary(output, message));
    const headers = new Headers(call.metadata);
    const controller = new AbortController();
    let over;
    const ended = new Promise((resolve) => (over = resolve));
    const options = {
      headers,
      signal: controller.signal,
      timeoutMs: call.timeout * 1000,
      onHeader: (header) => (outcome.initial = kept(header)),
      onTrailer: (trailer) => (outcome.trailing = kept(trailer)),
    };
    const streams = methodKind === "client_streaming" || methodKind === "bidi_streaming";
    const until = (count) => answers.until(count);
    const given = streams ? requestsOf(call, requests, until, ended) : requests[0];
    try {
      const made = client[localName](given, options);
      if (call.cancel_after === 0) setTimeout(() => controller.abort(), 50);
      if (methodKind === "unary" || methodKind === "client_streaming") got(await made);
      else
        for await (const answer of made) {
          got(answer);
          if (outcome.replies.length === call.cancel_after) controller.abort();
        }
    } catch (error) {
      if (!(error instanceof ConnectError)) throw error;
      outcome.code = error.code === Code.Canceled ? "CANCELLED" : CODES[error.code];
      outcome.details = error.rawMessage;
      // Without a message, one header block contains both.
      if (!outcome.replies.length) this.#separate(outcome, kept(error.metadata));
    } finally {
      over();
    }
    if (call.cancel_after !== undefined) outcome.initial = outcome.trailing = [];
  }

  #separate(outcome, all) {
    const initial = new Set(outcome.initial.map(String));
    outcome.trailing = all.filter((each) => !initial.has(String(each)));
  }
}

main({ open: (...given) => new Channel(...given) });
