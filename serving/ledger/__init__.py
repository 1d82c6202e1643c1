"""The record of every request, and what it says about price and cost (deploy/docs/usage.md)."""
