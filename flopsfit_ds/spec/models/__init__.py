"""Sections of models that are not the package's own."""
