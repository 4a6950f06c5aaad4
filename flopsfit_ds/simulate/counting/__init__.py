"""A module's training step without weights: what it multiplies, what it keeps, and which way it goes."""
