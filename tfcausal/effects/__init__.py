"""Causal effects: what happens to the answer when a concept, a region or an attack intervenes."""
