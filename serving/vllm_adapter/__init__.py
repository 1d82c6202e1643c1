"""Everything that changes or replaces parts of vLLM's OpenAI server."""
