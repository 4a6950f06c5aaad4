"""Fits the public points of Hoffmann et al. 2022, figure 4, and compares with what others published of them.

python scripts/public_points.py svg_extracted_data.csv

The file is `data/svg_extracted_data.csv` of github.com/epoch-research/analyzing-chinchilla, which names no licence;
so it lies there, and not here. Published: Besiroglu et al. 2024 (arXiv:2404.10102), without the five highest losses.
"""

import sys
from pathlib import Path

from flopsfit_ds.fit import fit_scaling_law, load_points

PUBLISHED = {"alpha": (0.347, 0.0154), "beta": (0.367, 0.0206), "loss_floor": (1.817, 0.0257)}
"""Estimate and standard error."""
OBJECTIVE = 0.0010182741
"""The lowest sum of Huber losses that any of several optimizers found on these points."""


def main(path: Path) -> int:
    """Print both, and answer 1 where they differ by more than the last digit, or an error by more than 8%."""
    points = sorted(load_points(path).points, key=lambda point: point.loss)[:-5]
    fit = fit_scaling_law(points, bootstrap_samples=4000, other_forms=False, diagnostics=False)
    wrong = fit.objective > OBJECTIVE
    print(f"{len(points)} points; objective {fit.objective:.10f}, at best known {OBJECTIVE}")
    for name, (value, error) in PUBLISHED.items():
        found, found_error = getattr(fit.law, name), fit.standard_errors[name]
        wrong |= abs(found - value) > 5e-4 or abs(found_error / error - 1) > 0.08
        print(f"{name:10} {found:.4f} +- {found_error:.4f}, published {value} +- {error}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
