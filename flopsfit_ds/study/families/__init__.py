"""Models in all sizes that torch is needed for: a class of the user's, and those of transformers."""
