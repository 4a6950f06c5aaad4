"""Planted sweeps, and the commands of the fit."""
