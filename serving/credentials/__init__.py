"""Secrets and certificates in files: loaded, validated, and reloaded when they change.

Used by the edge and by both endpoints of the link between ranks and routers. This package opens no
connections, and its messages and log lines never contain a secret.
"""
