"""Imported by the fork server, and by nothing else: importing it prepares the process it is imported in."""

from flopsfit_ds.engine.fork.preload import prepare_from_environment

prepare_from_environment()
