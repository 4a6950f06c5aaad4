"""Sweeps in experiment trackers: a process beside the sweep reads its files and tells each tracker what they say.

The files of a sweep are the truth, and a tracker is a view of them. So nothing of a tracker runs where a model trains:
one that fails, hangs or asks for a password costs its own process, and what was sent is known when a sweep goes on.
"""

from flopsfit_ds.study.tracking.beside import Tracking

__all__ = ["Tracking"]
