"""vLLM's engine core without its front end: takes requests and returns token ids step by step."""
