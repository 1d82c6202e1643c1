"""Authentication and authorization of REST and gRPC requests."""
