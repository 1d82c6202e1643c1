"""Who may, how much, and how long it may wait: what is let in here is served or told why not."""
