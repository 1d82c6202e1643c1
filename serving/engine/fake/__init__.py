"""A deterministic engine without a model."""
