// Shared by grpc-js and nice-grpc, which is built on it.

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { CODES, descriptors, RpcFailed } from "./grpc_code.mjs";

const loaded = grpc.loadPackageDefinition(
  loader.loadFileDescriptorSetFromBuffer(descriptors(), {
    keepCase: true, enums: String, longs: String, defaults: false, oneofs: true,
  }),
);

const at = (path) => path.split(".").reduce((found, part) => found[part], loaded);

// A service's constructor, by its full name.
export const services = at;

export function channelOptions({ compressed, maxBytes, ping }) {
  return {
    "grpc.use_local_subchannel_pool": 1,
    ...(compressed && { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip }),
    ...(maxBytes && { "grpc.max_receive_message_length": maxBytes }),
    ...(ping && {
      "grpc.keepalive_time_ms": ping * 1000,
      "grpc.keepalive_permit_without_calls": 1,
    }),
  };
}

export function asMetadata(pairs) {
  const found = new grpc.Metadata();
  for (const [key, value] of Object.entries(pairs)) found.set(key, value);
  return found;
}

export function withMetadata(metadata) {
  return metadata.getMap();
}

// Returns our error, with details, for an error of a call.
export function failed(error, metadata = error.metadata) {
  const [binary] = metadata?.get("grpc-status-details-bin") ?? [];
  return new RpcFailed(CODES[error.code], error.details, binary ? detailsOf(binary) : []);
}

export function detailsOf(binary) {
  const type = (name) => loaded.clients.errors[name];
  return type("Status").deserialize(binary).details.map(({ type_url, value }) => {
    const name = type_url.replace(/.*google\.rpc\./, "");
    return { type: name, value: type(name).deserialize(value) };
  });
}
