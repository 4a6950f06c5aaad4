"""The ensemble behind predictions: every form of law that the points can carry, as members that look at their top.

The centre of a prediction is the weighted mean of the members' ln L, corrected by the drift that earlier forecasts of
the same table showed. Its interval adds up the noise of a run, the members' resamples, half of the variance between
members, and an error that grows with the distance as fast as those earlier forecasts were off (`members`, `history`).

It assumes that errors beyond the data grow as errors within it did, and that runs to come are made as the runs at hand
were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum
from flopsfit_ds.fit.forecast.optimum import LawAt
from flopsfit_ds.fit.forecast.parts.frontier import Frontier, FrontierSummary, frontier_member
from flopsfit_ds.fit.forecast.parts.history import History, look_back
from flopsfit_ds.fit.forecast.parts.members import RECENCIES, RECENCIES_ALONE, Member, fit_members, quasi_log_likelihood
from flopsfit_ds.fit.forecast.prediction import PredictionModel
from flopsfit_ds.fit.forecast.repeats import MemberDraws
from flopsfit_ds.fit.forecast.rolling import Extrapolation, roll
from flopsfit_ds.fit.laws.base import FLOOR
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY, OF_REPEATS, SURFACES, get_law
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.points.ray import Ray
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.covariance import run_noise
from flopsfit_ds.fit.solve.solver import Problem

_SPARE = 2  # points more than parameters, as in `rolling`
_SHARED_ERRORS = 0.5
"""Power on likelihoods as evidence: runs of one budget or size share their errors, so that points count for fewer."""


@dataclass(frozen=True, eq=False)
class FormFit:
    """One form fitted to all points alike, for the comparison of forms.

    Attributes:
        problem: The points under this form.
        fit: Its certified fit.
        noise: Standard deviation of ln L about it.
        extrapolations: Its rolling origin.
        log_likelihood: Profiled quasi-likelihood with the penalty of BIC (Schwarz 1978).
        weight: Share of its members in the ensemble.
        evidence: Share by likelihood alone: below a hundredth the points all but refute it.
    """

    problem: Problem
    fit: CertifiedFit
    noise: float
    extrapolations: tuple[Extrapolation, ...]
    log_likelihood: float
    weight: float = math.nan
    evidence: float = math.nan


@dataclass(frozen=True, eq=False)
class Ensemble:
    """All forms, the fitted one first, their members, and what the members' past forecasts came to.

    Attributes:
        forms: Weights sum to one.
        members: In the order of the forms.
        history: Weights of the members, drift and growth.
        skipped: Form -> why it is not in the ensemble.
        frontier: Loss at the best size against compute, the last of the members; None without minima enough.
    """

    forms: tuple[FormFit, ...]
    members: tuple[Member, ...]
    history: History
    skipped: dict[str, str]
    frontier: Frontier | None

    def frontier_beside(self, at: LawAt, compute: float) -> FrontierSummary | None:
        """The frontier beside the fitted law at a compute; None where there is none."""
        weight = float(self.history.weights[-1])
        return None if self.frontier is None else self.frontier.beside(at, compute, weight)

    def model(self, arrays: PointArrays, rule: ComputeRule, level: float, ray: Ray | None) -> PredictionModel:
        """The prediction model."""
        first, past = self.forms[0], self.history
        log_ratio = np.log(arrays.num_tokens / arrays.num_params)
        return PredictionModel(
            law=first.problem.law.name,
            theta=first.fit.theta,
            weight=first.weight,
            members=tuple(
                MemberDraws(member.law.name, member.recency, float(weight), member.theta, member.draws)
                for member, weight in zip(self.members, past.weights, strict=True)
            ),
            centre_n=first.problem.inputs.centre_n,
            centre_d=first.problem.inputs.centre_d,
            rule=rule,
            noise=past.noise,
            drift=past.drift,
            growth=past.growth,
            num_looks=past.num_looks,
            largest_compute=float(arrays.flops.max()),
            tokens_per_parameter=(float(np.exp(log_ratio.min())), float(np.exp(log_ratio.max()))),
            level=level,
            num_spare=len(arrays.loss) - first.problem.law.num_parameters,
            ray=ray,
        )


def build_ensemble(
    problem: Problem,
    fit: CertifiedFit,
    groups: Sequence[Sequence[int]],
    arrays: PointArrays,
    clusters: np.ndarray,
    seed: int,
    other_forms: bool,
    rule: ComputeRule,
    minima: Sequence[BudgetMinimum],
) -> Ensemble:
    """Fit every form that the points can carry, and weigh its members by what their past forecasts were worth.

    Args:
        problem: The points under the form that was asked for.
        fit: Its fit.
        groups: Points by rising compute, from `rolling.compute_groups`.
        arrays: The points.
        clusters: Points that are resampled together.
        seed: For the resampling.
        other_forms: False leaves the fitted form alone in the ensemble; the compute-only law is always alone, since
            forms of size and data are not identified by what it is fitted to.
        rule: How compute divides.
        minima: Of the isoFLOP budgets, for the frontier.
    """
    log_compute = np.log(arrays.flops)
    forms = [_form_fit(problem, fit, groups, log_compute)]
    alone = problem.law.name == COMPUTE_ONLY
    recencies = RECENCIES_ALONE if alone else RECENCIES
    members = fit_members(problem, fit, groups, log_compute, clusters, seed, recencies)
    skipped: dict[str, str] = {}
    names = [n for n in SURFACES if n != problem.law.name] if other_forms and not alone else []
    for name in names:
        law = get_law(name)
        if name in OF_REPEATS and arrays.unique_tokens is None:
            continue
        if problem.floor is not None and FLOOR not in law.parameter_names:
            skipped[name] = f"no floor that could be held at {problem.floor:g}"
            continue
        if len(arrays.loss) < law.num_parameters + _SPARE:
            skipped[name] = f"{len(arrays.loss)} points for {law.num_parameters} parameters"
            continue
        other = problem.under(law)
        try:
            found = certified_fit(other)
        except FitError as error:
            skipped[name] = str(error)
            continue
        forms.append(_form_fit(other, found, groups, log_compute))
        members += fit_members(other, found, groups, log_compute, clusters, seed)
    front = None
    if other_forms and not alone:
        front = frontier_member(problem, fit, rule, minima, groups, log_compute, seed)
        members += [] if front is None else [front.member]
    past = look_back(members, groups, log_compute, problem.log_loss)
    forms = _weighted(forms, members, past)
    return Ensemble(forms, tuple(members), past, skipped, None if front is None else front.frontier)


def _form_fit(problem: Problem, fit: CertifiedFit, groups: Sequence[Sequence[int]], log_compute: np.ndarray) -> FormFit:
    residuals = problem.law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss
    rolled = tuple(roll(problem, fit.theta, groups, log_compute)) if len(groups) > 2 else ()
    count, size = len(residuals), problem.law.num_parameters
    likelihood = quasi_log_likelihood(problem.loss, fit.objective, count) - 0.5 * size * math.log(count)
    return FormFit(problem, fit, run_noise(residuals, size), rolled, likelihood)


def _weighted(forms: Sequence[FormFit], members: Sequence[Member], past: History) -> tuple[FormFit, ...]:
    shares: dict[str, float] = {}
    for member, weight in zip(members, past.weights, strict=True):
        shares[member.law.name] = shares.get(member.law.name, 0.0) + float(weight)
    likelihood = np.array([form.log_likelihood for form in forms])
    evidence = np.exp(_SHARED_ERRORS * (likelihood - likelihood.max()))
    evidence /= evidence.sum()
    return tuple(
        replace(form, weight=shares[form.problem.law.name], evidence=float(share))
        for form, share in zip(forms, evidence, strict=True)
    )
