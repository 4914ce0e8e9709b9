"""Training: round-robin order, optimiser, metrics, checkpoints, logs, step and trainer."""
