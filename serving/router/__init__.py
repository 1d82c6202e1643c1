"""The router process: builds its parts, starts them in order, and stops them in reverse."""
