"""gRPC edge, REST edge: protocols in, the fleet's typed errors out."""
