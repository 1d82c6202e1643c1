"""Ranks as Ray Serve deployments."""
