"""Benchmarks of the router process, with fake ranks over real links, and of its peers."""
