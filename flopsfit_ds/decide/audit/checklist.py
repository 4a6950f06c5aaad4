"""The audit: every point of the checklist, passed, failed, or beyond what the runs can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.audit.fits import fit_checks
from flopsfit_ds.decide.audit.grid import grid_checks
from flopsfit_ds.decide.audit.runs import run_checks
from flopsfit_ds.decide.audit.view import AuditView, Check, Status
from flopsfit_ds.decide.sources import Source
from flopsfit_ds.fit.points.points import Exclusion, in_order, with_rows
from flopsfit_ds.fit.points.selection import select_points


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        source: What was audited.
        num_points: Runs that a fit would take.
        checks: In a fixed order: the grid, the runs, the fit.
        excluded: Runs left out, each with its reason.
    """

    source: str
    num_points: int
    checks: tuple[Check, ...]
    excluded: tuple[Exclusion, ...]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(check.status == status for check in self.checks)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            **asdict(self),
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "unknown": self.count("unknown"),
        }


def audit_runs(source: Source, target_compute: float | None = None) -> AuditReport:
    """Go through the checklist for these runs.

    Args:
        source: The runs, from `read_sources`.
        target_compute: FLOPs of the run that is to be planned; ten times the largest run without it.

    Raises:
        FitError: No run can be used, or a target that is not positive.
    """
    if target_compute is not None and not 0 < target_compute < float("inf"):
        raise FitError(f"the target must be positive and finite, got {target_compute}")
    everyone = in_order(with_rows(source.points))
    chosen = select_points(everyone)
    excluded = (*source.excluded, *chosen.excluded)
    if not chosen.points:
        shown = "; ".join(gone.reason for gone in excluded[:3])
        raise FitError(f"{source.name}: no run can be used ({shown})")
    view = AuditView.of(
        everyone, chosen.points, excluded, source.columns, source.kinds, source.parameters, target_compute
    )
    checks = (*grid_checks(view), *run_checks(view), *fit_checks(view))
    return AuditReport(source.name, len(chosen.points), checks, excluded)
