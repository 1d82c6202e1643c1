"""The router process alone, measured against fake ranks over real links."""
