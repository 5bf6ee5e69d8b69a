"""Adapting a version to one task."""
