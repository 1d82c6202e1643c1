"""All overrides and replacements of parts of vLLM's OpenAI server and the underlying FastAPI."""
