"""The learning core: tasks, environments, policies and meta-learners. Knows no HTTP, no SQL, no settings."""
