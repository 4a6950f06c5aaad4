"""Optimisers of a run: kinds of parameters, and what trains each."""
