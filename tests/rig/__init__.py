"""Nodes of Ray in network namespaces of this machine: a rig for tests, not part of the product."""
