"""Check of all-to-all communication between the pods of a group, before weights are loaded."""
