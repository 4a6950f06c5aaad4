"""The back-test: every form fitted on the lower budgets, judged on the top ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.checks.refits import Target
from flopsfit_ds.fit.forecast.ensemble import FormFit
from flopsfit_ds.fit.losses import FloatArray

_HELD_OUT = 0.3  # of the budgets; of five the two highest, of ten the three. Chosen


@dataclass(frozen=True)
class FormScore:
    """One form of law, judged by the back-test.

    Attributes:
        law: The form.
        weight: Its share of the ensemble of predictions.
        evidence: Its share by likelihood alone.
        num_parameters: Parameters.
        objective: Summed score on all points.
        noise: Standard deviation of the residuals.
        backtest_rms: Root mean square of ln(predicted / observed) on the budgets held out; None without a back-test.
        backtest_bias: Mean of the same.
        log_loss_at_target: Predicted ln L at the target.
    """

    law: str
    weight: float
    evidence: float
    num_parameters: int
    objective: float
    noise: float
    backtest_rms: float | None
    backtest_bias: float | None
    log_loss_at_target: float


@dataclass(frozen=True)
class Backtest:
    """The fitted form on the top budgets, fitted without them.

    Attributes:
        origin_compute: Largest budget that was seen.
        held_out_computes: Budgets that were predicted.
        bias: Mean of ln(predicted / observed) on each of them.
        expected: Standard error of that mean that the fit promised: delta method and noise.
        rms: Root mean square over all points held out.
    """

    origin_compute: float
    held_out_computes: tuple[float, ...]
    bias: tuple[float, ...]
    expected: tuple[float, ...]
    rms: float


def hold_out(form: FormFit, groups: Sequence[Sequence[int]], log_compute: FloatArray) -> Backtest | None:
    """The back-test of one form; None with fewer than three budgets, or too few points on the lower ones."""
    looks = form.extrapolations
    if not looks:
        return None

    def compute(group: int) -> float:
        return math.exp(float(log_compute[list(groups[group])].mean()))

    total = sum(look.num_points for look in looks)
    return Backtest(
        compute(looks[0].origin),
        tuple(compute(look.budget) for look in looks),
        tuple(look.bias for look in looks),
        tuple(math.sqrt(look.spread**2 + look.noise**2 / look.num_points) for look in looks),
        math.sqrt(sum(look.num_points * look.rms**2 for look in looks) / total),
    )


def rank_forms(
    forms: Sequence[FormFit], groups: Sequence[Sequence[int]], log_compute: FloatArray, target: Target
) -> tuple[FormScore, ...]:
    """Every form with its back-test, the best one first; forms without one come last, by their objective."""
    scores: list[FormScore] = []
    for form in forms:
        test = hold_out(form, groups, log_compute)
        sizes = [look.num_points for look in form.extrapolations]
        scores.append(
            FormScore(
                law=form.problem.law.name,
                weight=form.weight,
                evidence=form.evidence,
                num_parameters=form.problem.law.num_parameters,
                objective=form.fit.objective,
                noise=form.noise,
                backtest_rms=None if test is None else test.rms,
                backtest_bias=None if test is None else float(np.average(test.bias, weights=sizes)),
                log_loss_at_target=float(target.log_loss(form.problem, form.fit.theta[None])[0]),
            )
        )
    return tuple(sorted(scores, key=lambda s: (math.inf if s.backtest_rms is None else s.backtest_rms, s.objective)))
