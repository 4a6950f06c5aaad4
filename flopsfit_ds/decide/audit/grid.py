"""Checks of the grid: does it span what a law needs, and more than the run that is to be planned asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flopsfit_ds.base.units import format_count, format_flops, format_ratio
from flopsfit_ds.decide.audit.view import AuditView, Check, failed, passed, unknown

POINTS_PER_PARAMETER = 3
"""Chosen: two degrees of freedom a parameter are left to disagree with the law."""
LEAST_BUDGETS = 3
"""Two fix a line and cannot disagree with it."""
LEAST_COMPUTE_RANGE = 10.0
"""Chosen: a decade, so that a step to ten times the largest budget is no longer than what was seen."""
LEAST_SIZES = 5
"""A valley has three coefficients; two runs more can disagree with them."""
LEAST_SIZE_RANGE = 4.0
"""Sizes a factor two off the optimum on either side cost about 1% of the loss: less is lost in the noise."""
LEAST_RATIO_RANGE = 10.0
"""Chosen: a factor of three to either side of the optimum."""
RAY = 0.1
"""Scatter of ln D about its regression on ln N; isoFLOP grids have 1.0 to 1.5."""


def grid_checks(view: AuditView) -> Iterator[Check]:
    """Number of runs, ranges of compute, sizes and tokens per parameter, minima at edges, reach."""
    yield _count(view)
    yield _compute_range(view)
    yield _sizes(view)
    yield _edges(view)
    yield _ratios(view)
    yield _reach(view)


def _count(view: AuditView) -> Check:
    title = "Enough runs for a law"
    distinct = len({(round(math.log(p.num_params), 3), round(math.log(p.num_tokens), 3)) for p in view.points})
    wanted = 5 * POINTS_PER_PARAMETER
    found = (
        f"{len(view.points)} runs at {distinct} places, {sum(not gone.of_source for gone in view.excluded)} left out"
    )
    if distinct >= wanted:
        return passed("points", title, found)
    return failed("points", title, found, f"train at least {wanted} places: three for each of 5 parameters")


def _compute_range(view: AuditView) -> Check:
    title = "Budgets that span compute"
    flops, budgets = view.arrays.flops, [b for b in view.isoflop.budgets if b.num_points > 1]
    ratio = float(flops.max() / flops.min())
    found = (
        f"{len(budgets)} budgets, {format_flops(float(flops.min()))} to {format_flops(float(flops.max()))} FLOPs "
        f"(a factor of {ratio:.3g})"
    )
    if len(budgets) >= LEAST_BUDGETS and ratio >= LEAST_COMPUTE_RANGE:
        return passed("compute_range", title, found)
    remedy = f"train at least {LEAST_BUDGETS} budgets over a factor of {LEAST_COMPUTE_RANGE:g} or more"
    return failed("compute_range", title, found, remedy)


def _sizes(view: AuditView) -> Check:
    title = "Sizes at each budget"
    budgets = [b for b in view.isoflop.budgets if b.num_points > 1]
    if not budgets:
        return unknown("sizes", title, "no two runs share a budget", "train several sizes at each budget")
    poor = [b for b in budgets if b.num_points < LEAST_SIZES or b.sizes[1] / b.sizes[0] < LEAST_SIZE_RANGE]
    counts, spans = [b.num_points for b in budgets], [b.sizes[1] / b.sizes[0] for b in budgets]
    many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    found = f"{many} runs at a budget, over a factor of {min(spans):.3g} to {max(spans):.3g}"
    if not poor:
        return passed("sizes", title, found)
    named = ", ".join(format_flops(b.compute_flops) for b in poor)
    remedy = f"add sizes at {named}: {LEAST_SIZES} or more over a factor of {LEAST_SIZE_RANGE:g} or more"
    return failed("sizes", title, found, remedy)


def _edges(view: AuditView) -> Check:
    title = "Minima inside the grid"
    judged = [b for b in view.isoflop.budgets if b.coefficients is not None]
    if not judged:
        return unknown("edges", title, "no budget has three sizes", "train five sizes or more at each budget")
    refused = [b for b in judged if b.refused is not None]
    found = f"{len(judged) - len(refused)} of {len(judged)} budgets have their best size between others"
    if not refused:
        return passed("edges", title, found)
    told = "; ".join(f"{format_flops(b.compute_flops)}: {b.refused}" for b in refused[:4])
    more = f"; and {len(refused) - 4} more" if len(refused) > 4 else ""
    return failed("edges", title, found, told + more)


def _ratios(view: AuditView) -> Check:
    title = "Range of tokens per parameter"
    ratio = view.arrays.num_tokens / view.arrays.num_params
    low, high = float(ratio.min()), float(ratio.max())
    n, d = np.log(view.arrays.num_params), np.log(view.arrays.num_tokens)
    n, d = n - n.mean(), d - d.mean()
    scatter = float(np.std(d - float(n @ d) / max(1e-300, float(n @ n)) * n))
    found = f"{low:.3g} to {high:.3g} tokens per parameter (a factor of {high / low:.3g})"
    if scatter < RAY:
        found += f", all on one ray (ln D scatters by {scatter:.2g} about it)"
        remedy = "size and data cannot be told apart: train each size with other numbers of tokens too"
        return failed("tokens_per_parameter", title, found, remedy)
    if high / low < LEAST_RATIO_RANGE:
        remedy = f"span a factor of {LEAST_RATIO_RANGE:g} or more, on both sides of the optimum"
        return failed("tokens_per_parameter", title, found, remedy)
    return passed("tokens_per_parameter", title, found)


def _reach(view: AuditView) -> Check:
    title = "The target within reach"
    flops = view.arrays.flops
    ahead, span = view.target_compute / float(flops.max()), float(flops.max() / flops.min())
    found = f"{format_flops(view.target_compute)} FLOPs is {format_ratio(ahead)} times the largest run; "
    found += f"the runs span {format_ratio(span)}"
    fitted = view.fitted
    if ahead > span:
        needed = format_flops(math.sqrt(view.target_compute * float(flops.min())))
        return failed("reach", title, found, f"train a budget of {needed} FLOPs or more: farther than the runs span")
    if not isinstance(fitted, str):
        ratio, tried = math.exp(fitted.target.log_d - fitted.target.log_n), view.arrays
        low, high = (float(f(tried.num_tokens / tried.num_params)) for f in (np.min, np.max))
        found += f"; the optimum there has {ratio:.3g} tokens per parameter"
        if not low <= ratio <= high:
            size = format_count(math.exp(fitted.target.log_n))
            remedy = f"nothing was tried at {ratio:.3g} tokens per parameter (N* {size}): add runs there"
            return failed("reach", title, found, remedy)
    return passed("reach", title, found)
