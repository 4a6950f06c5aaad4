"""Whole studies: the five steps as functions, and `find_optimal` over a class of the user."""
