"""Tests that share one running system; it is stopped after the last of them."""
