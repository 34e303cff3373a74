"""Data: sources, planted contexts, masks and the batches that a model is fed with."""
