"""Shapes of models: parameters and FLOPs by the shape alone."""
