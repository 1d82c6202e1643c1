"""Capacity planning: layouts of a model on given hardware, their throughput and their price.

Arithmetic on published figures, without I/O. It was written without access to a GPU: the results
are those of a model, checked against published measurements (``anchors``), and every output says
so.
"""
