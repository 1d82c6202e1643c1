// Descriptors of our services and of gRPC's own, for clients that need no generated code.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

// The Python environment that contains this Node has protoc.
const PYTHON = join(dirname(process.execPath), "../../../../../bin/python");
const OURS = process.env.CLIENT_PROTO;
const COMMON = join(OURS, "../tests/clients/proto");

export const INFERENCE = "serving.api.v1.InferenceService";
export const HEALTH = "grpc.health.v1.Health";

// A binary FileDescriptorSet.
export function descriptors() {
  const folder = mkdtempSync(join(tmpdir(), "descriptors-"));
  try {
    const target = join(folder, "all.pb");
    const protos = ["serving/api/v1/inference.proto", ...readdirSync(COMMON)];
    execFileSync(PYTHON, [
      "-m", "grpc_tools.protoc", `-I${OURS}`, `-I${COMMON}`,
      "--include_imports", `--descriptor_set_out=${target}`, ...protos,
    ]);
    return readFileSync(target);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

// A call ended with a status other than OK.
// details: of google.rpc.Status, as { type, value }, the last part of the type's name and bytes.
export class RpcFailed extends Error {
  constructor(code, words, details = []) {
    super(`${code}: ${words}`);
    this.name = "RpcFailed";
    Object.assign(this, { code, words, details });
  }

  detail(type) {
    return this.details.find((each) => each.type === type)?.value;
  }
}

export const CODES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
  "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
  "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
];
