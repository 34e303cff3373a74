"""Classifiers of the papers, as functional Keras models."""
