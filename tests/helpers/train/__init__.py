"""Ranks under way, and models, losses and workloads made to fail."""
