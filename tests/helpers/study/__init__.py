"""A user's own project."""
