"""vLLM's engine core without its front end: accepts requests and returns token ids step by step."""
