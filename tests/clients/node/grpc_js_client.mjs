// @grpc/grpc-js with @grpc/proto-loader.

import grpc from "@grpc/grpc-js";
import { GRPC, main } from "./frame.mjs";
import { tryAll } from "./grpc_features.mjs";
import { asMetadata, channelOptions, failed, services, withMetadata } from "./grpc_js.mjs";

class Channel {
  constructor(options) {
    this.clients = new Map();
    const insecure = grpc.credentials.createInsecure();
    this.channel = new grpc.Channel(GRPC, insecure, channelOptions(options));
  }

  client(service) {
    const options = { channelOverride: this.channel };
    return new (services(service))("", grpc.credentials.createInsecure(), options);
  }

  async unary(service, name, request, { metadata, timeout, signal }) {
    const came = {};
    return await new Promise((resolve, reject) => {
      const deadline = Date.now() + timeout * 1000;
      const made = this.client(service)[name](
        request, asMetadata(metadata), { deadline },
        (error, answer) => {
          if (error) reject(failed(error));
          else made.on("status", () => resolve({ answer, metadata: came }));
        },
      );
      made.on("metadata", (initial) => Object.assign(came, withMetadata(initial)));
      signal?.addEventListener("abort", () => made.cancel());
    });
  }

  async *stream(service, name, requests, { metadata, timeout }) {
    const method = this.client(service)[name].bind(this.client(service));
    const given = [asMetadata(metadata), { deadline: Date.now() + timeout * 1000 }];
    const both = name === "ServerReflectionInfo";
    const made = both ? method(...given) : method(requests[0], ...given);
    if (both) {
      for (const request of requests) made.write(request);
      made.end();
    }
    try {
      yield* made;
    } catch (error) {
      throw failed(error);
    } finally {
      made.cancel();
    }
  }

  close() {
    this.channel.close();
  }
}

tryAll((options) => new Channel(options));
await main({
  packages: ["@grpc/grpc-js", "@grpc/proto-loader"],
  cannot: { "grpc.blocking": "Node has no blocking clients" },
});
