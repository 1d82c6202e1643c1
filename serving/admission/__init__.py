"""Admission: quotas, a fair queue, early rejection of requests that would miss their deadline."""
