"""The model being trained: load it, cut batches into micro-batches, update it."""
