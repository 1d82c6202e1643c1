"""A rank: vLLM behind the link, placed by Ray Serve. Imports no router package."""
