"""Fits planted records; as a script, writes the report of the first version to a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a script, by itself

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import ScalingFit, fit_scaling_law, points_from_records
from flopsfit_ds.records import RunRecord
from flopsfit_ds.report import write_report
from helpers.report.report_records import isoflop_sweep

_FITS: dict[str, ScalingFit | FitError] = {}


def fit_of(records: Sequence[RunRecord]) -> ScalingFit | FitError:
    """The fit of these records, or why there is none; made once for records that are the same."""
    key = repr(records)
    if key not in _FITS:
        _FITS[key] = _fit(records)
    return _FITS[key]


def _fit(records: Sequence[RunRecord]) -> ScalingFit | FitError:
    chosen = points_from_records(records)
    try:
        return fit_scaling_law(chosen.points, excluded=chosen.excluded, bootstrap_samples=50, diagnostics=False)
    except FitError as error:
        return error


def versions() -> tuple[list[RunRecord], list[RunRecord]]:
    return isoflop_sweep((1e12, 3e12), 5), isoflop_sweep((1e12, 3e12), 6)


if __name__ == "__main__":
    first = versions()[0]
    write_report(Path(sys.argv[1]), first, fit_of(first))
