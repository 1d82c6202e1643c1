"""A load generator for OpenAI-compatible servers and for this project's gRPC API.

It is run by ``moe-serving load`` and ``python -m loadtest``. The wheel does not include the
subpackages: ``bench`` measures the router, ``simulation`` replays load against a model of the
fleet, and ``demos`` shows prefix affinity and autoscaling on real engines.
"""
