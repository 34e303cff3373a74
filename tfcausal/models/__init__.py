"""Keras models that train a classifier with the objectives of the papers."""
