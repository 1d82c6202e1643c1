"""Capacity planning: the layout of a model on given hardware, and what it serves at what price.

Arithmetic on public figures, without I/O. No GPU was available when it was written: it is a model,
checked against published measurements (``anchors``), and every output says so.
"""
