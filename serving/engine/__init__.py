"""A rank: vLLM behind the link, placed by Ray Serve. Knows no router package."""
