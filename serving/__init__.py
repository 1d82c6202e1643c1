"""moe-serving: serves DeepSeek-class mixture-of-experts models with expert parallelism.

The packages follow the path of a request: ``edge`` -> ``requests`` -> ``admission`` -> ``dispatch``
-> ``fleet`` (with ``routing``) in the router process, ``engine`` in the ranks. See
deploy/docs/concepts.md.
"""

__version__ = "0.1.0"
