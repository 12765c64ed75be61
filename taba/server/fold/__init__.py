"""Takes batches in: what waits for a bucket becomes one transaction, and what cannot be folded a dead letter."""
