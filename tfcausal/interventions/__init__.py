"""Interventions on images."""
