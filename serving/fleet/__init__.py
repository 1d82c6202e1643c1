"""Groups and ranks joined to the router: links, membership, canaries, operations."""
