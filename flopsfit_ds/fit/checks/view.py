"""What the warnings look at, and what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flopsfit_ds.fit.checks.diagnostics import Diagnostics
from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics
from flopsfit_ds.fit.forecast.optimum import LawAt, Optimum
from flopsfit_ds.fit.forecast.parts.frontier import FrontierSummary
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.points.ray import Ray
from flopsfit_ds.fit.solve.bootstrap import Draws
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.fit.solve.solver import Problem


@dataclass(frozen=True)
class FitWarning:
    """Something a reader of the fit must know.

    Attributes:
        code: Stable name, such as "single_ray".
        message: What it means here, with the numbers and what to do.
    """

    code: str
    message: str


@dataclass(frozen=True, eq=False)
class FitView:
    """What the warnings look at.

    Attributes:
        points: Points that entered the fit.
        problem: The points under the form.
        fit: Its certified fit.
        at: The law, ready to be evaluated.
        draws: The resampled fits; None without resamples.
        standard_errors: By name; empty without resamples.
        intervals: By name; empty without resamples.
        level: Probability of the intervals.
        isoflop: Valleys and envelope.
        optima: The optimum at each budget, the target last; empty where there is none.
        diagnostics: What could be wrong; None where they were not asked for.
        frontier: Loss at the best size against compute; None without minima enough.
        ray: Where all points lie on one line of tokens against size.
        asked: The form that was asked for.
    """

    points: Sequence[Point]
    problem: Problem
    fit: CertifiedFit
    at: LawAt
    draws: Draws | None
    standard_errors: Mapping[str, float]
    intervals: Mapping[str, Interval]
    level: float
    isoflop: IsoflopDiagnostics
    optima: tuple[Optimum, ...]
    diagnostics: Diagnostics | None
    frontier: FrontierSummary | None
    ray: Ray | None
    asked: str

    @property
    def a(self) -> float:
        """The exponent of N* ~ C^a where C/(N D) does not depend on N."""
        return float(self.problem.law.size_exponent_of_compute(self.fit.theta[None])[0])


_PLAIN = {
    "E": "the loss floor E",
    "loss_floor": "the loss floor E",
    "a": "the exponent of N* with compute",
    "b": "the exponent of D* with compute",
    "log_loss_at_target": "the loss at the target",
}
_SIDES = {"A": "parameters", "alpha": "parameters", "B": "tokens", "beta": "tokens"}


def plain(name: str) -> str:
    """A parameter or quantity as the law's formula writes it: the solver has logarithms, about the points' middle."""
    return _PLAIN.get(name) or name.removeprefix("log_").removesuffix("_centred")


def fallen_with(names: Sequence[str]) -> str:
    """Whose part of the law these parameters shape: that of parameters, that of tokens, or both."""
    shaped = {_SIDES.get(plain(name), "parameters and tokens") for name in names}
    return shaped.pop() if len(shaped) == 1 else "parameters and tokens"
