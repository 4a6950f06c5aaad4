"""Planted isoFLOP grids with a further column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flopsfit_ds.fit.points.points import Point


def column_grid(
    loss: Callable[[float, float, Any], float],
    values: Sequence[Any],
    seed: int = 0,
    noise: float = 0.002,
    budgets: int = 5,
) -> tuple[list[Point], list[Any]]:
    """Six sizes on each budget from 1e18 to 1e20 FLOPs, once for each value of the column."""
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    column: list[Any] = []
    for compute in np.geomspace(1e18, 1e20, budgets):
        for size in np.geomspace(0.25, 4.0, 6) * np.sqrt(compute / 120.0):
            for value in values:
                tokens = compute / 6.0 / size
                seen = loss(size, tokens, value) * np.exp(noise * rng.standard_normal())
                points.append(Point(float(size), float(tokens), float(seen), compute_budget_flops=float(compute)))
                column.append(value)
    return points, column


def write_with_column(path: Path, points: Sequence[Point], column: Sequence[Any], name: str) -> Path:
    """A table of N, D, loss and the column."""
    rows = [f"{p.num_params!r},{p.num_tokens!r},{p.loss!r},{v}" for p, v in zip(points, column, strict=True)]
    path.write_text("\n".join([f"N,D,loss,{name}", *rows]) + "\n")
    return path
