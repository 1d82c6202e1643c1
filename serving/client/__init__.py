"""Clients of a router over REST and gRPC, for the CLI, the load generator and tests."""
