"""Secrets and certificates in files: read, checked, and read again when they change.

Both sides of the link use them, and the edge. Nothing here listens or connects, and no message
or log line holds a secret.
"""
