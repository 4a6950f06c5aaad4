"""Datasets of a user's own as map-style pairs (inputs, targets): whatever items they have, however they are read."""
