"""What the checks of an audit look at, and what they answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.sources import Kind
from flopsfit_ds.fit.checks.refits import Target
from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics, isoflop_minima
from flopsfit_ds.fit.forecast.optimum import LawAt
from flopsfit_ds.fit.forecast.rolling import compute_groups
from flopsfit_ds.fit.laws.registry import get_law
from flopsfit_ds.fit.losses import FloatArray, make_loss
from flopsfit_ds.fit.points.compute import compute_rule_of
from flopsfit_ds.fit.points.points import Exclusion, Point, PointArrays
from flopsfit_ds.fit.scaling import check_support, make_problem
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.covariance import run_noise
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.spec.fit_options import DEFAULTS, TARGET_FACTOR, ParameterCount

Status = Literal["passed", "failed", "unknown"]


@dataclass(frozen=True)
class Check:
    """One point of the checklist.

    Attributes:
        code: Stable name, such as "edges".
        title: What is asked.
        status: `unknown` where the runs at hand cannot tell.
        found: What was found, with the numbers.
        remedy: What to do; None where it passed.
    """

    code: str
    title: str
    status: Status
    found: str
    remedy: str | None


def passed(code: str, title: str, found: str) -> Check:
    """A point that is in order."""
    return Check(code, title, "passed", found, None)


def failed(code: str, title: str, found: str, remedy: str) -> Check:
    """A point that is not."""
    return Check(code, title, "failed", found, remedy)


def unknown(code: str, title: str, found: str, remedy: str) -> Check:
    """A point that these runs cannot tell."""
    return Check(code, title, "unknown", found, remedy)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The law of the default options on all points, without resamples: what the checks of the fit judge.

    Attributes:
        problem: The points under the law.
        fit: Its certified fit.
        at: The law, ready to be evaluated.
        residuals: (points,) ln(predicted) - ln(observed).
        noise: Standard deviation of ln L of one run about it.
        groups: Points by rising compute; empty with fewer than three budgets.
        target: Where predictions are judged.
    """

    problem: Problem
    fit: CertifiedFit
    at: LawAt
    residuals: FloatArray
    noise: float
    groups: list[list[int]]
    target: Target


@dataclass(frozen=True, eq=False)
class AuditView:
    """A table of runs.

    Attributes:
        everyone: All runs that could be read, in their order.
        points: Those that a fit would take.
        excluded: The others.
        columns: Quantity -> column, of a table.
        kinds: What the runs were read from.
        parameters: What N counts, where it is known.
        target_compute: FLOPs of the run that is to be planned.
    """

    everyone: Sequence[Point]
    points: tuple[Point, ...]
    excluded: tuple[Exclusion, ...]
    columns: Mapping[str, str]
    kinds: tuple[Kind, ...]
    parameters: ParameterCount | None
    target_compute: float

    @classmethod
    def of(
        cls,
        everyone: Sequence[Point],
        points: tuple[Point, ...],
        excluded: tuple[Exclusion, ...],
        columns: Mapping[str, str],
        kinds: tuple[Kind, ...],
        parameters: ParameterCount | None,
        target_compute: float | None,
    ) -> AuditView:
        """A view; without a target it is ten times the largest run."""
        largest = max(point.compute_flops for point in points)
        return cls(everyone, points, excluded, columns, kinds, parameters, target_compute or TARGET_FACTOR * largest)

    @cached_property
    def arrays(self) -> PointArrays:
        """Columns of the points."""
        return PointArrays.of(self.points)

    @cached_property
    def isoflop(self) -> IsoflopDiagnostics:
        """Valleys and envelope."""
        return isoflop_minima(self.points)

    @cached_property
    def fitted(self) -> Fitted | str:
        """The law, or why there is none."""
        law = get_law(DEFAULTS.law)
        try:
            check_support(law, self.arrays, len(self.excluded))
            problem = make_problem(law, make_loss(DEFAULTS.loss, DEFAULTS.huber_delta), self.arrays)
            fit = certified_fit(problem)
            at = LawAt(law, fit.theta, problem.inputs, compute_rule_of(self.arrays))
        except FitError as error:
            return str(error)
        residuals = law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss
        log_c = math.log(self.target_compute)
        try:
            log_n = at.log_optimum(log_c)
        except FitError:
            log_n = float(problem.inputs.n.max()) + problem.inputs.centre_n
        target = Target(log_n, float(at.rule.log_tokens(np.array(log_c), np.array(log_n))))
        groups = compute_groups(self.points, self.arrays)
        return Fitted(problem, fit, at, residuals, run_noise(residuals, law.num_parameters), groups, target)


def name_of(point: Point) -> str:
    """The row of a run, and its name where it has one."""
    name = point.label or point.run_id
    return f"row {point.row}" + (f" ({name})" if name else "")
