"""Demonstrations on real engines: prefix affinity, and groups that follow the load."""
