"""Groups of ranks as the router sees them: the link, membership, and FleetClient on top."""
