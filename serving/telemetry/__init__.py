"""Metrics, traces and logs; every metric is declared in metrics.py."""
