// @grpc/grpc-js with @grpc/proto-loader.
"use strict";
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { Answers, CODES, files, kept, main } = require("./common.cjs");

const GZIP = grpc.compressionAlgorithms.gzip;

function credentials(tls) {
  if (!tls) return grpc.credentials.createInsecure();
  const { ca, cert, key } = files(tls);
  return grpc.credentials.createSsl(ca, key ?? null, cert ?? null);
}

function definitions(descriptors) {
  const loaded = loader.loadFileDescriptorSetFromBuffer(descriptors, { keepCase: true });
  return grpc.loadPackageDefinition(loaded).interop.v1;
}

class Channel {
  constructor(target, descriptors) {
    this.services = definitions(descriptors);
    // Whether requests are compressed is a channel's property.
    this.channels = [undefined, GZIP].map((algorithm) => this.#channel(target, algorithm));
  }

  #channel({ address, tls }, algorithm) {
    const options = { "grpc.use_local_subchannel_pool": 1 };
    if (algorithm !== undefined) options["grpc.default_compression_algorithm"] = algorithm;
    return new grpc.Channel(address, credentials(tls), options);
  }

  close() {
    for (const each of this.channels) each.close();
  }

  async perform(call, outcome) {
    const service = this.services[call.service];
    const channelOverride = this.channels[Number(call.compressed)];
    const client = new service("", grpc.credentials.createInsecure(), { channelOverride });
    const definition = service.service[call.method];
    const metadata = new grpc.Metadata();
    for (const [key, value] of call.metadata)
      metadata.add(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
    const requests = call.requests.map(definition.requestDeserialize);
    const answers = new Answers(outcome);

    const given = definition.requestStream ? [] : [requests[0]];
    given.push(metadata, { deadline: Date.now() + call.timeout * 1000 });
    if (!definition.responseStream)
      given.push((error, answer) => {
        if (answer) answers.got(definition.responseSerialize(answer));
      });
    const made = client[call.method](...given);
    const ended = new Promise((resolve) => made.on("status", resolve));
    made.on("metadata", (initial) => (outcome.initial = kept(pairs(initial))));
    if (definition.responseStream) {
      made.on("data", (answer) => answers.got(definition.responseSerialize(answer)));
      made.on("error", () => {}); // reported by the status as well
    }
    if (definition.requestStream) await this.#send(made, requests, call, answers);
    const status = await ended;
    outcome.code = CODES[status.code];
    outcome.details = status.details;
    if (call.cancel_after === undefined) outcome.trailing = kept(pairs(status.metadata));
    else outcome.initial = [];
  }

  async #send(made, requests, call, answers) {
    let wanted = 0;
    for (const [number, request] of requests.entries()) {
      made.write(request);
      if (call.lockstep) await answers.until((wanted += call.answers[number] ?? 0));
      if (answers.outcome.replies.length >= call.cancel_after) {
        made.cancel();
        return;
      }
    }
    if (!call.unfinished) made.end();
  }
}

function pairs(metadata) {
  return Object.keys(metadata.getMap()).flatMap((key) =>
    metadata.get(key).map((value) => [key, value]),
  );
}

module.exports = { credentials, definitions };
if (require.main === module) main({ open: (...given) => new Channel(...given) });
