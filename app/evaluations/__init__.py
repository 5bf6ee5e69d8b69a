"""Evaluations of how well versions and policies adapt."""
