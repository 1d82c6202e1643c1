"""Authentication and authorization of REST and gRPC callers."""
