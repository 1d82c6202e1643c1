"""Metrics and logs; every metric is declared in metrics.py."""
