"""What a report says, gathered from the fit or, where no law could be fitted, from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.checks.warnings import FitWarning, budget_warnings
from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics, isoflop_minima
from flopsfit_ds.fit.forecast.optimum import Optimum
from flopsfit_ds.fit.forecast.prediction import Prediction
from flopsfit_ds.fit.points.points import Exclusion, Point, points_from_records
from flopsfit_ds.fit.points.selection import select_points
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord
from flopsfit_ds.spec.fit_options import DEFAULT_COUNT, ParameterCount


@dataclass(frozen=True, eq=False)
class ExcludedRun:
    """A run or row outside the fit.

    Attributes:
        name: Label, run id or row, for people.
        reason: Why.
        record: The run, where the exclusion belongs to one of the records.
    """

    name: str
    reason: str
    record: RunRecord | None


TOKEN_UNIT = "nats per token"


def unit_of_loss(plan: SweepPlan | None, records: Sequence[RunRecord]) -> str:
    """The unit that the data gives the losses; of a table, or of a loss function of one's own, nobody here knows it."""
    if plan is None:
        return TOKEN_UNIT if records else ""
    if plan.corpus.source == "dataset":
        return ""
    return "nats per byte" if plan.corpus.tokenizer is None and plan.corpus.dtype == "uint8" else TOKEN_UNIT


@dataclass(frozen=True, eq=False)
class Findings:
    """All that is known, whether or not there is a law.

    Attributes:
        records: Every run that ended, in the order of the plan.
        fit: The law; None where it was refused.
        refusal: Why there is no law, or why the law has no optimum; None where it has.
        isoflop: Valleys and envelope.
        points: What entered the fit, or would have.
        excluded: What did not, with its reason.
        target: The optimum at the target compute; None without a law, or without an interior optimum.
        prediction: The loss there with its intervals; on a ray of runs, of its next run.
        warnings: What a reader must know.
        parameter_count: What N counts.
        loss_unit: Of all losses; empty where only whoever measured them knows it.
    """

    records: tuple[RunRecord, ...]
    fit: ScalingFit | None
    refusal: str | None
    isoflop: IsoflopDiagnostics
    points: tuple[Point, ...]
    excluded: tuple[ExcludedRun, ...]
    target: Optimum | None
    prediction: Prediction | None
    warnings: tuple[FitWarning, ...]
    parameter_count: ParameterCount
    loss_unit: str = TOKEN_UNIT

    def named(self, loss: str) -> str:
        """A loss with its unit, for an axis."""
        return f"{loss}, {self.loss_unit}" if self.loss_unit else loss

    @property
    def has_isoflop(self) -> bool:
        """Whether there is a valley to be drawn: a budget with a curve, or one that the design asked for."""
        designed = any(point.compute_budget_flops is not None for point in self.points)
        return bool(self.isoflop.budgets) and (designed or any(b.coefficients for b in self.isoflop.budgets))


def gather(
    records: Sequence[RunRecord],
    fit: ScalingFit | FitError,
    parameter_count: ParameterCount = DEFAULT_COUNT,
) -> Findings:
    """Gather what a report says.

    Args:
        records: The runs, in the order in which they were given to the fit.
        fit: The fit, or the error that says why there is none.
        parameter_count: What N counts: that of the fit.
    """
    records = tuple(records)
    if isinstance(fit, FitError):
        chosen = points_from_records(records, parameter_count=parameter_count)
        usable = select_points(chosen.points)
        isoflop = isoflop_minima(usable.points)
        return Findings(
            records=records,
            fit=None,
            refusal=str(fit),
            isoflop=isoflop,
            points=usable.points,
            excluded=_excluded((*chosen.excluded, *usable.excluded), records),
            target=None,
            prediction=None,
            warnings=tuple(budget_warnings(usable.points, isoflop)),
            parameter_count=parameter_count,
        )
    target = fit.optima[-1] if fit.optima else None
    return Findings(
        records=records,
        fit=fit,
        refusal=None if target else _no_optimum(fit),
        isoflop=fit.isoflop,
        points=fit.points,
        excluded=_excluded(fit.excluded, records),
        target=target,
        prediction=fit.predict(fit.target_compute) if target or fit.prediction.ray else None,
        warnings=fit.warnings,
        parameter_count=parameter_count,
    )


def _no_optimum(fit: ScalingFit) -> str:
    if fit.prediction.ray is not None:
        return f"all runs lie on {fit.prediction.ray.in_words}, so no other ratio was tried"
    try:
        fit.at.optimum(max(point.compute_flops for point in fit.points))
    except FitError as error:
        return str(error)
    return f"the fitted {fit.law.form} law gives no optimum at the budgets asked for"


def _excluded(exclusions: Sequence[Exclusion], records: Sequence[RunRecord]) -> tuple[ExcludedRun, ...]:
    found: list[ExcludedRun] = []
    for exclusion in exclusions:
        record = _record_of(exclusion, records)
        row = "the source" if exclusion.row is None else f"row {exclusion.row}"
        found.append(ExcludedRun(exclusion.name or row, exclusion.reason, record))
    return tuple(found)


def _record_of(exclusion: Exclusion, records: Sequence[RunRecord]) -> RunRecord | None:
    """Rows count records from 1; the name guards against a fit of other records."""
    if exclusion.row is None or not 1 <= exclusion.row <= len(records):
        return None
    record = records[exclusion.row - 1]
    return record if exclusion.name in (record.label, record.run_id) else None
