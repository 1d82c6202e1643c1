// nice-grpc, on definitions of @grpc/proto-loader.

import grpc from "@grpc/grpc-js";
import { ClientError, createChannel, createClient, Metadata } from "nice-grpc";
import { GRPC, main } from "./frame.mjs";
import { CODES, RpcFailed } from "./grpc_code.mjs";
import { tryAll } from "./grpc_features.mjs";
import { channelOptions, detailsOf, services } from "./grpc_js.mjs";

class Channel {
  constructor(options) {
    const insecure = grpc.credentials.createInsecure();
    this.channel = createChannel(GRPC, insecure, channelOptions(options));
  }

  method(service, name) {
    const client = createClient(services(service).service, this.channel);
    return client[name] ?? client[name[0].toLowerCase() + name.slice(1)];
  }

  async unary(service, name, request, more) {
    const made = new Made(more);
    try {
      const answer = await this.method(service, name)(request, made.options);
      return { answer, metadata: made.came };
    } catch (error) {
      throw made.failed(error);
    } finally {
      made.over();
    }
  }

  async *stream(service, name, requests, more) {
    const made = new Made(more);
    const given = name === "ServerReflectionInfo" ? requestsOf(requests) : requests[0];
    try {
      yield* this.method(service, name)(given, made.options);
    } catch (error) {
      throw made.failed(error);
    } finally {
      made.over();
    }
  }

  close() {
    this.channel.close();
  }
}

async function* requestsOf(requests) {
  yield* requests;
}

// Options of one call. Deadlines are implemented by the client: a signal that aborts.
class Made {
  constructor({ metadata, timeout, signal }) {
    this.came = {};
    this.controller = new AbortController();
    this.timer = setTimeout(() => this.controller.abort("late"), timeout * 1000);
    signal?.addEventListener("abort", () => this.controller.abort("given up"));
    this.options = {
      metadata: Metadata(metadata),
      signal: this.controller.signal,
      onHeader: (header) => this.keep(header),
      onTrailer: (trailer) => {
        this.keep(trailer);
        this.details = trailer.get("grpc-status-details-bin");
      },
    };
  }

  keep(metadata) {
    for (const [key] of metadata) this.came[key] = metadata.get(key);
  }

  failed(error) {
    if (this.controller.signal.reason === "late")
      return new RpcFailed("DEADLINE_EXCEEDED", "of the client");
    if (!(error instanceof ClientError)) return error;
    const details = this.details ? detailsOf(Buffer.from(this.details)) : [];
    return new RpcFailed(CODES[error.code], error.details, details);
  }

  over() {
    clearTimeout(this.timer);
  }
}

tryAll((options) => new Channel(options));
await main({
  packages: ["nice-grpc"],
  cannot: { "grpc.blocking": "Node has no blocking clients" },
});
