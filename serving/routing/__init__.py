"""Which rank takes a request: pure functions over a frozen picture of the fleet. No I/O here."""
