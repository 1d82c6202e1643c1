"""Admission: quotas, a fair queue, and early refusal of requests that would miss their deadline."""
