"""Background meta-trainings."""
