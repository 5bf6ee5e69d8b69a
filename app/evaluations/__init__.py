"""Evaluations: what versions and policies are worth on tasks they have not seen, with intervals and a verdict."""
