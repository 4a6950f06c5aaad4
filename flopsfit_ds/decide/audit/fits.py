"""Checks of the fit: rounding, outliers, delta, residuals, agreement of approaches, back-test."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_flops
from flopsfit_ds.decide.audit.view import AuditView, Check, Fitted, failed, passed, unknown
from flopsfit_ds.fit.checks.design import coarse_rounding
from flopsfit_ds.fit.checks.refits import delta_refits, suspects
from flopsfit_ds.fit.checks.shapes import residual_trends
from flopsfit_ds.fit.forecast.rolling import Extrapolation, roll
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance

OUTLIER = 4.0
"""Sigmas: six of 100,000 normal residuals."""
EXPONENT_CHANGE = 0.02
"""5% of N* over a decade."""
LOSS_CHANGE = 0.01
"""Relative, of the predicted loss. Chosen."""
SURE = 1e-3
"""Chosen: of a thousand clean tables one shows a trend as clear."""
MISS = 3.0
"""Times what was promised: of normal errors one of 370 is as far off."""
LEAST_MISS = 0.005
"""A back-test that is off by less than half a per cent is no failure, whatever it promised."""


def fit_checks(view: AuditView) -> Iterator[Check]:
    """All checks of the fit; unknown where no law can be fitted."""
    titles = {
        "law": "A law that the runs determine",
        "rounding": "Losses given to enough digits",
        "outliers": "No run far off the law",
        "delta": "The answer does not hang on delta",
        "residuals": "Residuals without a trend",
        "approaches": "Law and isoFLOP valleys agree",
        "backtest": "The upper budgets foretold by the lower ones",
    }
    fitted = view.fitted
    if isinstance(fitted, str):
        yield failed("law", titles["law"], fitted, "mend the grid first; what follows needs a law")
        for code in list(titles)[1:]:
            yield unknown(code, titles[code], "there is no law", "mend the grid first")
        return
    checks = {"law": _law, "rounding": _rounding, "outliers": _outliers, "delta": _delta, "residuals": _residuals}
    checks |= {"approaches": _approaches, "backtest": _backtest}
    for code, check in checks.items():
        yield check(view, fitted, titles[code])


def _law(view: AuditView, fitted: Fitted, title: str) -> Check:
    natural = {
        k: float(v[0]) for k, v in fitted.problem.law.natural(fitted.fit.theta[None], fitted.problem.inputs).items()
    }
    certificate = fitted.fit.certificate
    found = (
        f"E {natural['loss_floor']:.4g}, alpha {natural['alpha']:.3f}, beta {natural['beta']:.3f}; runs scatter by "
        f"{fitted.noise:.2%}; {certificate.best_share:.0%} of {certificate.starts} starts agree"
    )
    if not certificate.active_bounds:
        return passed("law", title, found)
    held = ", ".join(certificate.active_bounds)
    return failed("law", title, f"{held} ended on a bound; {found}", "add budgets and sizes, or fit fewer parameters")


def _rounding(view: AuditView, fitted: Fitted, title: str) -> Check:
    coarse = coarse_rounding(view.points, fitted.noise)
    if coarse is None:
        return passed("rounding", title, f"rounding is little of the {fitted.noise:.2%} that runs scatter by")
    remedy = "give losses to more digits: errors of rounding need not average out, and the interval of E hangs on them"
    return failed("rounding", title, coarse.in_words, remedy)


def _outliers(view: AuditView, fitted: Fitted, title: str) -> Check:
    found = suspects(fitted.problem, fitted.fit, view.points, fitted.residuals, fitted.noise, fitted.target)
    far = [s for s in found if s.residual_sigmas > OUTLIER]
    if not far:
        largest = float(np.abs(fitted.residuals).max())
        sigmas = largest / max(fitted.noise, 1e-300)
        return passed("outliers", title, f"the farthest run is {largest:.2%} off, {sigmas:.2g} sigmas")
    told = "; ".join(
        f"row {s.row}{f' ({s.name})' if s.name else ''} {math.expm1(s.log_residual):+.2%} ({s.residual_sigmas:.3g} "
        f"sigmas), without it the loss at the target changes by {s.log_loss_change:+.2%}"
        for s in far[:4]
    )
    more = f"; and {len(far) - 4} more" if len(far) > 4 else ""
    return failed("outliers", title, told + more, "look at these runs: diverged, mistuned, or a mistaken cell")


def _delta(view: AuditView, fitted: Fitted, title: str) -> Check:
    own = float(fitted.problem.law.size_exponent_of_compute(fitted.fit.theta[None])[0])
    refits = delta_refits(fitted.problem, fitted.fit, fitted.target)
    exponents = [refit.a for refit in refits]
    changes = [refit.log_loss_change for refit in refits]
    found = (
        f"with delta {refits[0].huber_delta:g} to {refits[-1].huber_delta:g} the exponent of N* is "
        f"{min(exponents):.3f} to {max(exponents):.3f} (here {own:.3f}), the loss at the target moves by "
        f"{min(changes):+.2%} to {max(changes):+.2%}"
    )
    if max(abs(a - own) for a in exponents) <= EXPONENT_CHANGE and max(map(abs, changes)) <= LOSS_CHANGE:
        return passed("delta", title, found)
    return failed("delta", title, found, "a few runs pull the fit: mend the outliers, or report the range")


def _residuals(view: AuditView, fitted: Fitted, title: str) -> Check:
    trends = residual_trends(view.arrays, fitted.residuals, fitted.problem.law.num_parameters)
    sure = [trend for trend in trends if trend.p_value < SURE]
    if not trends:
        return unknown("residuals", title, "too few runs to judge", "train more runs")
    if not sure:
        return passed("residuals", title, f"the surest of {len(trends)} has p {min(t.p_value for t in trends):.2g}")
    told = ", ".join(f"with ln {t.against} (p {t.p_value:.1g})" for t in sure)
    remedy = "small sizes may be mistuned, or the form misses something: compare forms with flopsfit-ds fit"
    return failed("residuals", title, told, remedy)


def _approaches(view: AuditView, fitted: Fitted, title: str) -> Check:
    law = view.isoflop.size_law
    if law is None or law.standard_error is None:
        remedy = "train three budgets with their minima inside"
        return unknown("approaches", title, "fewer than three valleys have a minimum", remedy)
    ends = [math.log(float(f(view.arrays.flops))) for f in (np.min, np.max)]
    try:
        low, high = (fitted.at.log_optimum(end) for end in ends)
    except FitError as error:
        return unknown("approaches", title, str(error), "mend the grid first")
    a, error = (high - low) / (ends[1] - ends[0]), _exponent_error(fitted)
    found = f"N* ~ C^{a:.3f} ({error:.3f}) by the law, C^{law.exponent:.3f} ({law.standard_error:.3f}) by the valleys"
    if abs(law.exponent - a) <= max(EXPONENT_CHANGE, 2.0 * math.hypot(error, law.standard_error)):
        return passed("approaches", title, found)
    return failed("approaches", title, found, "widen the sizes of each budget, and look for mistuned small runs")


def _exponent_error(fitted: Fitted) -> float:
    """Standard error of the exponent of N* by the delta method."""
    theta, law = fitted.fit.theta, fitted.problem.law
    everyone = np.ones(len(fitted.residuals), dtype=bool)
    covariance = asymptotic_covariance(fitted.problem, theta, everyone, fitted.noise)
    step = 1e-5 * np.maximum(1.0, np.abs(theta))
    moved = np.concatenate([theta + np.diag(step), theta - np.diag(step)])
    a = law.size_exponent_of_compute(moved)
    slope = (a[: len(theta)] - a[len(theta) :]) / (2 * step)
    return math.sqrt(max(0.0, float(slope @ covariance @ slope)))


def _backtest(view: AuditView, fitted: Fitted, title: str) -> Check:
    log_c = np.log(view.arrays.flops)
    looks = roll(fitted.problem, fitted.fit.theta, fitted.groups, log_c) if len(fitted.groups) > 2 else []
    if not looks:
        return unknown("backtest", title, "fewer than three budgets, or too few runs below", "train a third budget")
    worst = max(looks, key=_misses)
    edge = math.exp(float(log_c[fitted.groups[worst.origin]].mean()))
    found = (
        f"fitted up to {format_flops(edge)} FLOPs, the law is off by {worst.bias:+.2%} at "
        f"{format_flops(edge * math.exp(worst.log_distance))}, where {_promised(worst):.2%} was promised; "
        f"{max(look.rms for look in looks):.2%} at most"
    )
    if _misses(worst) <= MISS or abs(worst.bias) <= LEAST_MISS:
        return passed("backtest", title, found)
    remedy = "do not extrapolate farther than the back-test held; predict widens its intervals for it"
    return failed("backtest", title, found, remedy)


def _promised(look: Extrapolation) -> float:
    return math.sqrt(look.spread**2 + look.noise**2 / look.num_points)


def _misses(look: Extrapolation) -> float:
    return abs(look.bias) / max(_promised(look), 1e-9)
