"""Measures of what a classifier knows, where it looks and whether that is what its answer rests on."""
