"""Routing: chooses a rank for a request, with pure functions of a view of the fleet and no I/O."""
