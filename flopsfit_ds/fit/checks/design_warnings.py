"""Warnings of the points and of the design they make, before any law: how many, where, and what their FLOPs say."""

import math
from collections.abc import Iterator, Sequence

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.checks.counting import counting_warnings
from flopsfit_ds.fit.checks.design import unlike_batches
from flopsfit_ds.fit.checks.diagnostics import Diagnostics
from flopsfit_ds.fit.checks.view import FitView, FitWarning
from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics
from flopsfit_ds.fit.points.compute import compute_misfit
from flopsfit_ds.fit.points.dependence import LEAST_CLUSTERS, dependence_of
from flopsfit_ds.fit.points.points import Point, PointArrays

_FEW_PER_PARAMETER = 3
"""95% intervals of 9, 12 and 15 points for 5 parameters hold in 99.8%, 97.9% and 98.8% (`calibrate_fit.py parameters
--laws 60 --samples 300 --budgets 1e18 1e19 1e20 --sizes 3`, 4, 5): rough, and rather too wide."""
_HARDLY_SPARE = 2
"""In the same study 6 points (--sizes 2) hold in 67%, 8 points (--budgets 1e18 1e20 --sizes 4) in 99.0%."""
_RULE_MISFIT = 0.1
"""Where N* ~ C^0.5, 10% of compute is 5% of N*; sizes 22% off still lose under 0.1% (`calibrate_fit.py figures`)."""
_RULE_DRIFT = 0.05  # half of that: it grows with every further decade
_WIDE_BUDGET = 0.1  # where N* ~ C^0.5, the ends of such a budget have optima 5% apart
_MOST_NAMED = 8
_SMALL_EXCESS = 0.003
_SURE_EXCESS = 4.0
"""Standard errors. A law is carried on by a decade here, and none is exact."""


def design_warnings(view: FitView) -> Iterator[FitWarning]:
    """All warnings of this module, in a fixed order."""
    checks = (_few_points, _duplicates, _dependent, _single_ray, _compute_rule, _compute_beyond)
    for check in checks:
        yield from check(view)
    yield from budget_warnings(view.points, view.isoflop)
    if view.diagnostics is not None:
        yield from _learning_rates(view.diagnostics)


def _single_ray(view: FitView) -> Iterator[FitWarning]:
    ray = view.ray
    if ray is not None:
        instead = "" if view.asked == view.problem.law.name else f" instead of the {view.asked} law"
        yield FitWarning(
            "single_ray",
            f"all runs lie on {ray.in_words}: the effects of size and data cannot be told apart, so loss is fitted to "
            f"compute alone{instead}. N*, D* and what another ratio costs are not known, and predictions hold on that "
            "line only; train some runs at a quarter and at four times as many tokens per parameter",
        )


def _few_points(view: FitView) -> Iterator[FitWarning]:
    count, size = len(view.points), view.problem.law.num_parameters
    if count < _FEW_PER_PARAMETER * size:
        advised = _FEW_PER_PARAMETER * size
        rough = "intervals are rough" if count > size + _HARDLY_SPARE else "intervals hold less often than they say"
        yield FitWarning("few_points", f"{count} points for {size} parameters: {rough}; {advised} or more are advised")


def _duplicates(view: FitView) -> Iterator[FitWarning]:
    keys = [(p.num_params, p.num_tokens, p.loss) for p in view.points]
    repeated = len(keys) - len(set(keys))
    if repeated:
        yield FitWarning(
            "duplicate_rows",
            f"{repeated} rows repeat another exactly; each copy counts as a run of its own and narrows the intervals",
        )


def _dependent(view: FitView) -> Iterator[FitWarning]:
    found = dependence_of(view.points)
    if not found.found:
        return
    if found.num_groups >= LEAST_CLUSTERS:
        done = f"they are resampled together, {found.num_groups} independent groups in all"
    else:
        done = f"that leaves {found.num_groups} independent groups, too few to resample: intervals are too narrow"
    undecided = any("checkpoints" in told for told in found.found) and not all(p.schedule for p in view.points)
    advice = (
        "; where the learning rate decays only the last checkpoint is a point of a law: say so in a column schedule"
    )
    yield FitWarning(
        "dependent_points",
        f"of {len(view.points)} points {', '.join(found.found)}; {done}" + (advice if undecided else ""),
    )


def budget_warnings(points: Sequence[Point], isoflop: IsoflopDiagnostics) -> Iterator[FitWarning]:
    """What must be known of the budgets, whether a law was fitted or not."""
    for budget in isoflop.budgets:
        if budget.refused and "edge" in budget.refused:
            yield FitWarning("edge_minimum", f"budget {format_flops(budget.compute_flops)}: {budget.refused}")
    if isoflop.strays and any(b.num_params for b in isoflop.budgets) and len(isoflop.strays) < len(points) / 2:
        named = ", ".join(isoflop.stray_names[:_MOST_NAMED])
        more = len(isoflop.strays) - _MOST_NAMED
        yield FitWarning(
            "stray_points",
            f"{len(isoflop.strays)} points are of no budget and enter no isoFLOP minimum (the law has them): {named}"
            + (f" and {more} more" if more > 0 else "")
            + "; where they belong to one, say so in a column compute_budget_flops",
        )
    unlike = unlike_batches(points)
    if unlike:
        yield FitWarning(
            "unlike_batches",
            f"batches differ within a budget: {'; '.join(each.in_words for each in unlike[:_MOST_NAMED])}"
            + f" and {len(unlike) - _MOST_NAMED} budgets more" * (len(unlike) > _MOST_NAMED)
            + ": what the batch does to a loss is then taken for what the size does, and the optimum moves; train all "
            "runs of a budget in one batch, or tune batch and learning rate at each size (where that column holds no "
            "global batches, name the one that does with --global-batch-column)",
        )
    wide = [b for b in isoflop.budgets if b.computes[1] > (1.0 + _WIDE_BUDGET) * b.computes[0]]
    if wide and any(point.compute_budget_flops is None for point in points):
        told = "; ".join(f"{b.num_points} of {' to '.join(map(format_flops, b.computes))}" for b in wide)
        yield FitWarning(
            "wide_budget",
            f"points of unlike FLOPs were taken for one budget, since no gap parts them: {told}; where they are "
            "several budgets, say so in a column compute_budget_flops",
        )


def _compute_rule(view: FitView) -> Iterator[FitWarning]:
    rule, arrays = view.at.rule, PointArrays.of(view.points)
    misfit = compute_misfit(rule, arrays)
    if misfit > _RULE_MISFIT:
        yield FitWarning(
            "compute_misfit",
            f"the FLOPs of a point are {math.expm1(misfit):.1%} off the rule ({rule.description}): N* and D* of a "
            "budget may cost as much more or less; check the FLOPs, and which parameters N counts",
        )
    yield from counting_warnings(arrays)


def _compute_beyond(view: FitView) -> Iterator[FitWarning]:
    rule, optima = view.at.rule, view.optima
    if len(rule.log_sizes) == 1 or not optima:
        return
    last, beyond = rule.stretches()[-2], math.log(optima[-1].num_params) - rule.log_sizes[-1]
    drift = math.expm1(last.size_exponent * beyond)
    if beyond > 0 and abs(drift) > _RULE_DRIFT:
        yield FitWarning(
            "compute_extrapolated",
            f"C/(N D) still goes as N^{last.size_exponent:.3f} at the largest sizes tried and is held constant beyond "
            f"them: at N* {format_count(optima[-1].num_params)} training may cost {drift:+.0%}, give or take, of the "
            "target; count all parameters, or compute the FLOPs of that model",
        )


def _learning_rates(diagnostics: Diagnostics) -> Iterator[FitWarning]:
    rates = diagnostics.learning_rates
    if rates.best_at_edge:
        where = ", ".join(rates.edges[:_MOST_NAMED])
        yield FitWarning(
            "learning_rate_edge",
            f"at {rates.best_at_edge} of {rates.tried} sizes the best learning rate is the smallest or largest tried "
            f"({where}): those losses may be too high; widen the range there",
        )
    small = diagnostics.small_runs
    if small is not None and small.log_excess > max(_SMALL_EXCESS, _SURE_EXCESS * small.standard_error):
        yield FitWarning(
            "small_runs_high",
            f"the {small.num_points} runs of {format_count(small.up_to)} parameters and fewer lie "
            f"{math.expm1(small.log_excess):.2%} above the law of the others (standard error "
            f"{small.standard_error:.2%}), as where their learning rate is not at its best: tune it there, or leave "
            "them out and see whether N* moves",
        )
