"""The web console at /console: static files, and bounded snapshots of the router's state.

It reads snapshots that the router takes in any case, and never waits for the request path. While no
console is open, the only work is one sample of totals every few seconds.
"""
