"""Planted sweeps that the tests of the fit share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flopsfit_ds.fit.planted import GridDesign, PlantedLaw, planted_points, random_law
from flopsfit_ds.fit.points.points import Point


def sweep(seed: int = 3, form: str = "chinchilla", **design: object) -> tuple[PlantedLaw, list[Point]]:
    """A random law of this form, and noisy points of it on an isoFLOP grid."""
    rng = np.random.default_rng(seed)
    planted = random_law(form, rng)
    return planted, planted_points(planted, GridDesign(**design), rng)  # type: ignore[arg-type]


def write_csv(path: Path, points: list[Point], header: str = "N,D,loss") -> Path:
    """N, D and loss of the points under a header."""
    rows = [f"{p.num_params!r},{p.num_tokens!r},{p.loss!r}" for p in points]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path
