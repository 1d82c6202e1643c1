"""``moe-serving plan``: layouts of a model on given hardware, their throughput and their price."""
