"""tfcausal: image classifiers that are right for the right reason."""

__version__ = "0.1.0"
