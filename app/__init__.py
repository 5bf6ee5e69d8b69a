"""The service: tasks, runs, registry, adaptations and policies over HTTP."""
