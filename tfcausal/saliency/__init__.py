"""Saliency methods: explainers, and the rules of the backward walk."""
