"""Runs read for the explorer, lazily: which there are, their images, tables, maps and models."""
