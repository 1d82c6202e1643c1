"""Adds and removes groups: one module per external system, behind the ``Actuator`` interface."""
