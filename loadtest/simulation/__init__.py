"""A model of the fleet in virtual time, driven by the real routing and autoscaling code.

Nothing here sleeps, opens a socket or reads a clock, but ``reality``, which drives the real thing
to calibrate the model and to say how far off it is. Equal seeds give equal results.
"""
