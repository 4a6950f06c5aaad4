"""Planted records and their reports."""
