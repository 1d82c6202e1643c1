"""vLLM's engine core without vLLM's front end: requests go in, token ids come out step by step."""
