"""``moe-serving verify``: equal answers for every layout of the experts."""
