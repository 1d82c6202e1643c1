"""``moe-serving plan``: layouts of a model on given hardware, and what they serve at what price."""
