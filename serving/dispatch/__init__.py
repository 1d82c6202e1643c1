"""Placing a request on a rank."""
