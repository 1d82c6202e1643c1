// nice-grpc, on definitions of @grpc/proto-loader.
"use strict";
const grpc = require("@grpc/grpc-js");
const nice = require("nice-grpc");
const { Answers, CODES, kept, main, requestsOf } = require("./common.cjs");
const { credentials, definitions } = require("./grpc_js.cjs");

const GZIP = grpc.compressionAlgorithms.gzip;

class Channel {
  constructor(target, descriptors) {
    this.services = definitions(descriptors);
    this.channels = [undefined, GZIP].map((algorithm) => {
      const options = { "grpc.use_local_subchannel_pool": 1 };
      if (algorithm !== undefined) options["grpc.default_compression_algorithm"] = algorithm;
      return nice.createChannel(target.address, credentials(target.tls), options);
    });
  }

  close() {
    for (const each of this.channels) each.close();
  }

  async perform(call, outcome) {
    const definition = this.services[call.service].service;
    const client = nice.createClient(definition, this.channels[Number(call.compressed)]);
    const { requestStream, responseStream, requestDeserialize, responseSerialize } =
      definition[call.method];
    const requests = call.requests.map(requestDeserialize);
    const answers = new Answers(outcome);
    const metadata = nice.Metadata();
    for (const [key, value] of call.metadata)
      metadata.append(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);

    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort("late"), call.timeout * 1000);
    let over;
    const ended = new Promise((resolve) => (over = resolve));
    const options = {
      metadata,
      signal: controller.signal,
      onHeader: (header) => (outcome.initial = kept(pairs(header))),
      onTrailer: (trailer) => (outcome.trailing = kept(pairs(trailer))),
    };
    const until = (count) => answers.until(count);
    const given = requestStream ? requestsOf(call, requests, until, ended) : requests[0];
    const name = call.method[0].toLowerCase() + call.method.slice(1);
    const method = client[call.method] ?? client[name];
    try {
      const made = method(given, options);
      if (call.cancel_after === 0) setTimeout(() => controller.abort("enough"), 50);
      if (responseStream)
        for await (const answer of made) {
          answers.got(responseSerialize(answer));
          if (outcome.replies.length === call.cancel_after) controller.abort("enough");
        }
      else answers.got(responseSerialize(await made));
    } catch (error) {
      if (controller.signal.reason === "late") outcome.code = "DEADLINE_EXCEEDED";
      else if (controller.signal.reason === "enough") outcome.code = "CANCELLED";
      else if (error instanceof nice.ClientError) outcome.code = CODES[error.code];
      else throw error;
      outcome.details = error.details ?? "of the client";
    } finally {
      clearTimeout(timer);
      over();
    }
    if (call.cancel_after !== undefined) outcome.initial = outcome.trailing = [];
  }
}

function* pairs(metadata) {
  for (const [key, values] of metadata) for (const value of values) yield [key, asBuffer(value)];
}

function asBuffer(value) {
  return typeof value === "string" ? value : Buffer.from(value);
}

main({ open: (...given) => new Channel(...given) });
