"""The deadline of the request that the current context works on; the edge sets it."""

from contextvars import ContextVar

deadline_var: ContextVar[float | None] = ContextVar("serving.fleet.deadline", default=None)
"""Seconds on the router's monotonic clock; none: the router's own request time-out alone."""
