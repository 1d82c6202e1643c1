"""Capacity planning: layouts of a model on given hardware, their throughput and their price.

Arithmetic on published figures, without I/O. The results come from a model that was checked against
published measurements (``anchors``), without access to a GPU, and every output states this.
"""
