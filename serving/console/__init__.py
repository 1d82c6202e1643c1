"""The web console at /console: static files, and bounded snapshots of the router's state.

It reads snapshots that the router makes anyway and never waits for the request path. Nothing is
computed while no console is open, except one sample of totals every few seconds.
"""
