"""Forecasts registered from the lower budgets of public tables, scored on the runs above: one table, one figure.

    python scripts/study_registered.py --figure scores.svg TABLE.csv [TABLE.csv ...]

Each table (num_params, num_tokens, flops, loss) is cut where about half of its e-folds of compute lie below. The law is
fitted to what lies below with the defaults, but for the resamples of parameters, which forecasts do not use. Of
each budget above, the run nearest in size to the optimum that the fit expects is registered, then scored: what a user
would train, and chosen without a look at its loss. Files are written and read back, as a user would.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from study_forecasts import groups_of

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide import load_forecast, register_forecast, score_forecast, summarise
from flopsfit_ds.decide.forecasts.scoring import Scored
from flopsfit_ds.fit import ScalingFit, fit_scaling_law, load_points
from flopsfit_ds.report.figures.score_figure import score_figure
from flopsfit_ds.report.figures.svg import rendered

LEAST_POINTS = 10


def study(path: Path, folder: Path) -> list[Scored]:
    """Scored forecasts of one table.

    Raises:
        FitError: Its lower half carries no law.
    """
    points = list(load_points(path).points)
    log_c = np.log([point.compute_flops for point in points])
    middle = 0.5 * (log_c.min() + log_c.max())
    groups = groups_of(points)
    seen = [index for group in groups if log_c[group].mean() <= middle for index in group]
    if len(seen) < LEAST_POINTS:
        raise FitError(f"{len(seen)} runs lie in its lower half")
    fit = fit_scaling_law([points[k] for k in seen], bootstrap_samples=0, diagnostics=False)
    file = folder / f"{path.stem}.fit.json"
    file.write_text(json.dumps(fit.to_json_dict()))
    found: list[Scored] = []
    edge = max(log_c[seen])
    for group in groups:
        ratio = math.exp(log_c[group].mean() - edge)
        if ratio < 1.5:
            continue
        expected = _expected_size(fit, math.exp(log_c[group].mean()), [points[k].num_params for k in group])
        best = min((points[k] for k in group), key=lambda point: abs(math.log(point.num_params / expected)))
        target = folder / f"{path.stem}-{ratio:.3g}.json"
        register_forecast(file, num_params=best.num_params, num_tokens=best.num_tokens).write(target)
        found.append(score_forecast(load_forecast(target), best.loss, f"{path.stem[:24]} {ratio:.3g}x"))
    return found


def _expected_size(fit: ScalingFit, compute: float, sizes: list[float]) -> float:
    """N* that the fit expects, or the middle size that was trained where the law has no optimum."""
    try:
        return fit.optimum(compute).num_params
    except FitError:
        return float(np.median(sizes))


def main() -> None:
    """Register, score, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    scored: list[Scored] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in given.tables:
            try:
                mine = study(path, Path(folder))
            except FitError as error:
                print(f"{path.stem}: {error}")
                continue
            scored += mine
            held = sum(row.hits[-2].inside for row in mine)
            print(f"{path.stem:45s} {held:3d} of {len(mine):3d} in their 90% interval")
    table = summarise(scored)
    for level in table.levels:
        print(
            f"{level.level:4.0%}: {level.inside} of {level.count} held ({level.inside / level.count:.0%}), "
            f"{level.verdict}; mean width {level.width:.2%}, interval score {level.score:.2%}"
        )
    last = table.running[-1]
    print(f"mean CRPS {last.crps:.3%}, mean size of the error {last.absolute_error:.2%}, mean error {last.bias:+.2%}")
    if given.figure is not None:
        (drawn,), _ = rendered(lambda: [score_figure(table)])
        given.figure.write_text(drawn.standalone)


if __name__ == "__main__":
    main()
