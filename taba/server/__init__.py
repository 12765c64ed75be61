"""The Server: folds batches into States and answers queries. Stateless: what it knows is in the store."""
