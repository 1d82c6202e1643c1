"""Dispatch: chooses a rank for a request and sends the request to it."""
