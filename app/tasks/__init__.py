"""Environments, task families and tasks."""
