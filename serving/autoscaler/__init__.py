"""How many groups there should be: signals -> policy (pure) -> actuators.

A process of its own beside the routers. Nothing of the request path imports it or waits for it:
without it the fleet keeps its size.
"""
