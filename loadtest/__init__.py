"""Load tests: scripts that start what they measure."""
