"""The OpenAI-compatible REST server."""
