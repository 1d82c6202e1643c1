"""Admission: quotas, a fair queue, and early rejection of requests that would be late."""
