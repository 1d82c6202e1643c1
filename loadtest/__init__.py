"""Load tests: a generator for any OpenAI-compatible server and for our gRPC, and benchmarks.

``python -m loadtest`` (also ``moe-serving load``) sends requests and reports; ``loadtest.bench``
measures the router alone; ``loadtest.affinity`` compares routing policies on real engines.
"""
