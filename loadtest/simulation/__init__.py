"""A simulation of the fleet in virtual time that runs the real routing and autoscaling code.

No module sleeps, opens a socket or reads a clock, except ``real_fleet``, which runs a real fleet to
calibrate the model and to measure its error. Runs with the same seed give the same results.
"""
