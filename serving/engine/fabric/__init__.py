"""Proves all-to-all between the pods of one group before weights are loaded."""
