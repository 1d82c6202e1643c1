"""The router process: what it is made of, started and stopped in order."""
