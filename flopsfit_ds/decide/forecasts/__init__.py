"""Forecasts that are registered before the run, and scored after it."""
