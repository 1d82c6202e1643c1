"""Files and batches: storage, validation, and the runner that sends lines in idle times."""
