"""A run directory: its files, its locks and signals, its checkpoints, and what is shown of it."""
