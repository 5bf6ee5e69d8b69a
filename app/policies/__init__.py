"""What adaptations yield."""
