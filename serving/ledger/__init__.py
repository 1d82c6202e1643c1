"""A record of every request, and the price and cost computed from it (deploy/docs/usage.md)."""
