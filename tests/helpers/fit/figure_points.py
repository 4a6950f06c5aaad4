"""Points like the public ones of Hoffmann et al. 2022, figure 4: a stand-in, for those have no licence to be passed on.

Besiroglu et al. 2024 recovered 245 points from the figure; github.com/epoch-research/analyzing-chinchilla, where they
lie, names no licence. Here as many are drawn from the law that the two published for them, at the figure's budgets and
sizes, with noise that gives the published standard errors; five outliers among the smallest budgets stand for the five
highest losses, which both leave out. `scripts/public_points.py` judges the real ones, for whoever has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FLOOR, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
NUM_POINTS, NUM_OUTLIERS, NOISE = 240, 5, 0.005


def write_figure_points(path: Path) -> Path:
    """The table as it is published: model size, FLOPs and loss, in no order, with a column that means nothing here."""
    rng = np.random.default_rng(20240417)
    budgets = np.resize(BUDGETS, NUM_POINTS + NUM_OUTLIERS)
    optimum = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budgets / 6) ** (BETA / (ALPHA + BETA))
    sizes = optimum * np.exp(rng.uniform(-1.6, 1.6, len(budgets)))
    tokens = budgets / 6 / sizes
    losses = (FLOOR + A / sizes**ALPHA + B / tokens**BETA) * np.exp(NOISE * rng.standard_normal(len(budgets)))
    # too large for their budget, and worse than any law would have it
    budgets[-NUM_OUTLIERS:], sizes[-NUM_OUTLIERS:] = 6e18, np.geomspace(2e9, 7e9, NUM_OUTLIERS)
    losses[-NUM_OUTLIERS:] = np.linspace(4.2, 5.0, NUM_OUTLIERS)
    budgets *= np.exp(0.01 * rng.standard_normal(len(budgets)))  # as far as a figure can be read
    columns = zip(sizes.tolist(), budgets.tolist(), losses.tolist(), strict=True)
    rows = [f"#faebdd,{size!r},{flops!r},{loss!r}" for size, flops, loss in columns]
    path.write_text("\n".join(["color,Model Size,Training FLOP,loss", *map(str, rng.permutation(rows))]) + "\n")
    return path
