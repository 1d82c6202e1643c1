"""``moe-serving up`` and ``down``: a complete system on this machine."""
