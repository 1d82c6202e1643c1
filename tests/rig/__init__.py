"""Test rig: Ray nodes in network namespaces of one machine. Not part of the product."""
