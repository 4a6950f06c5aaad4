"""The compute rule of points that carry FLOPs of their own."""

import math
from dataclasses import replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import CONVENTION, PointArrays
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN

SAME_RATIO = 0.02
"""Where N* ~ C^0.5, 2% of compute is 1% of N*."""
_ENDS_OF_LINES = (2, 3, 4)  # one, two or three lines, see `compute_rule`


def compute_rule_of(arrays: PointArrays) -> ComputeRule:
    """How compute divides into N and D for these points, said in words.

    FLOPs within 2% of a constant multiple of N D give that constant (6 where it is 6). Where the multiple depends on
    the size, as for small models whose attention and output head weigh in, ln(C/(N D)) is fitted by straight lines in
    ln N: one, two or three, the fewest that leave no point 2% off; beyond the sizes of the points it stays constant.

    Raises:
        FitError: FLOPs that have nothing to do with N D.
    """
    log_ratio = np.log(arrays.flops / arrays.num_params / arrays.num_tokens)
    middle = float(np.median(log_ratio))
    if float(np.abs(log_ratio - math.log(FLOPS_PER_PARAMETER_TOKEN)).max()) <= SAME_RATIO:
        return ComputeRule.constant(math.log(FLOPS_PER_PARAMETER_TOKEN), CONVENTION)
    rule = ComputeRule.constant(middle, f"C = {math.exp(middle):.3g} N D, the median of the FLOPs given")
    log_n = np.log(arrays.num_params)
    sizes = np.array(sorted(set(np.round(log_n, 4).tolist())), dtype=np.float64)
    for count in _ENDS_OF_LINES:
        if compute_misfit(rule, arrays) <= SAME_RATIO or len(sizes) < max(2, 2 * count - 3):
            break
        even = np.linspace(sizes[0], sizes[-1], count)
        ends = sizes[np.unique(np.abs(sizes[None, :] - even[:, None]).argmin(axis=1))]
        rule = _lines(log_n, log_ratio, ends)
    if len(rule.log_sizes) == 1:
        return rule
    misfit = math.expm1(compute_misfit(rule, arrays))
    return replace(rule, description=f"{rule.description}, {misfit:.1%} off at most; constant beyond")


def compute_misfit(rule: ComputeRule, arrays: PointArrays) -> float:
    """The largest |ln C - ln C by the rule| over the points."""
    by_rule = rule.log_flops(np.log(arrays.num_params), np.log(arrays.num_tokens))
    return float(np.abs(np.log(arrays.flops) - by_rule).max())


def _lines(log_n: FloatArray, log_ratio: FloatArray, ends: FloatArray) -> ComputeRule:
    """Least-squares straight lines that meet at `ends`."""
    hats = np.stack([np.interp(log_n, ends, row) for row in np.eye(len(ends))], axis=1)
    ratios, *_ = np.linalg.lstsq(hats, log_ratio, rcond=None)
    slopes = np.diff(ratios) / np.diff(ends)
    steepest = float(slopes[np.abs(slopes).argmax()])
    if not (slopes.min() > -0.9 and slopes.max() < 2.0):
        raise FitError(
            f"FLOPs do not go with parameters times tokens: C/(N D) runs from {math.exp(log_ratio.min()):.3g} to "
            f"{math.exp(log_ratio.max()):.3g} and as N^{steepest:.2f}; check which columns hold them"
        )
    where = [f"{math.exp(r):.3g} at {format_count(math.exp(n))}" for n, r in zip(ends, ratios, strict=True)]
    power = f"{math.exp(ratios[0] - slopes[0] * ends[0]):.3g} N^{1 + slopes[0]:.3f} D"
    words = f"C = {power}, C/(N D) {' and '.join(where)}" if len(ends) == 2 else f"C/(N D) {', '.join(where)}"
    description = f"{words} parameters, fitted to the FLOPs given"
    return ComputeRule(tuple(ends.tolist()), tuple(ratios.tolist()), description)
