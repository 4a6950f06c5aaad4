"""How far runs will lie off a law before any is trained, as sweeps of their compute showed.

What a fit meets is more than the scatter of seeds: no law is exact, least of all for small models and over many
decades of compute. The rule gives the noise at which a preview's standard error of ln N*, at the fit's own target, was
that of the fit which followed, by its resampled interval:

| sweep | runs | FLOPs of a run | noise that the fit met | rule |
|---|---|---|---|---|
| quickstart, two recipes | 15, 15 | 1e11 to 6.3e11 | 1.9%, 1.7% | 1.9% |
| a smaller one of the same bytes | 12 | 1e11 to 4.9e11 | 2.1% | 1.9% |
| hadasah/scaling_laws, best rates | 81 | 3.6e16 to 1.5e20 | 1.2% | 1.1% |
| Hoffmann et al., figure 4 | 240 | 1.4e18 to 1.3e22 | 1.1% | 1.2% |
| its lower and its upper half | 121, 119 | 1.4e18 to 8.5e19, to 1.3e22 | 0.6%, 0.5% | 0.6%, 0.6% |
| step-law's dense grid, best rates | 17 | 5.2e18 to 3.7e20 | 0.6% | 0.6% |
"""

import math
from collections.abc import Sequence

_AT = 1e20
_THERE = 0.006
"""Standard deviation of ln L about a law at that compute, within two decades of it."""
_SMALLER = 0.058
"""Exponent by which it grows below: three times that of 1e20 at 1e11."""
_DECADES = 2.0
_PER_DECADE = 0.005
"""What each decade beyond two adds, in squares: a form that holds over a narrow range bends over a wide one."""


def usual_noise(flops: Sequence[float]) -> float:
    """Standard deviation of ln L of runs about the law that will be fitted to them.

    Args:
        flops: Training FLOPs of each planned run.
    """
    logs = [math.log10(each) for each in flops]
    middle, decades = sum(logs) / len(logs), max(logs) - min(logs)
    near = _THERE * (_AT / 10.0**middle) ** _SMALLER
    return math.hypot(near, _PER_DECADE * max(0.0, decades - _DECADES))
