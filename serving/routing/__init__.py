"""Routing: chooses a rank for a request with pure functions of a frozen fleet snapshot, no I/O."""
