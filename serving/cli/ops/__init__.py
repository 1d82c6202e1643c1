"""Commands of operators against a running system."""
