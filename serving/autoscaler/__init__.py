"""Decides how many groups the fleet has: signals -> policy (pure) -> actuators.

Runs as a separate process. Nothing on the request path imports it or waits for it; without it, the
number of groups does not change.
"""
