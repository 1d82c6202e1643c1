"""The client-facing REST and gRPC servers."""
