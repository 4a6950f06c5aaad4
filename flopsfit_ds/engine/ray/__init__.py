"""Runs on a Ray cluster: a placement group each, and an actor a node that forks its ranks."""
