"""moe-serving up and down: a whole system on this machine."""
