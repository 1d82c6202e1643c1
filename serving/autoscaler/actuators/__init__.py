"""What makes the groups more or fewer: one module an outside system, all behind ``Actuator``."""
