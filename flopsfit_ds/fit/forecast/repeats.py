"""What repeating data costs, by the members of the ensemble whose forms know it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.laws.registry import OF_REPEATS, get_law
from flopsfit_ds.fit.losses import FloatArray

_ROBUST = 0.4549
"""Median of the square of a standard normal variable."""
_DECAYS = ("log_R", "log_R_N")
_AS_GOOD_AS_FRESH = math.log(2.0)
"""Below the upper bound of ln R: beyond 500 repeats the worth of the repeats that tables hold, some tens, is that of
fresh data to a few percent, and the solver stops anywhere on the way to 1000."""


@dataclass(frozen=True, eq=False)
class MemberDraws:
    """One member of the ensemble, as far as predictions need it.

    Attributes:
        law: Its form.
        recency: The power of compute with which the weights of its points fall.
        weight: Its share of the ensemble.
        theta: (parameters,), its best fit.
        draws: (draws, parameters), its resampled fits.
    """

    law: str
    recency: float
    weight: float
    theta: FloatArray
    draws: FloatArray


def robust_square(errors: FloatArray) -> float:
    """Mean square that normal errors with this median square would have."""
    return float(np.median(errors**2)) / _ROBUST


def cost_of_repeats(
    members: Sequence[MemberDraws], inputs: Inputs, unique_tokens: float | None, num_tokens: float
) -> tuple[float, float]:
    """ln L with repeated data over ln L with fresh data by the forms that know it, and the variance of that.

    Args:
        members: Of the ensemble.
        inputs: The point, its data fresh.
        unique_tokens: Distinct tokens; None for fresh data.
        num_tokens: All of them.

    Raises:
        FitError: Tokens that are not positive, or no member that has seen repeated data.
    """
    if unique_tokens is None:
        return 0.0, 0.0
    if not (math.isfinite(unique_tokens) and unique_tokens > 0):
        raise FitError(f"unique tokens must be positive and finite, got {unique_tokens:g}")
    if unique_tokens >= num_tokens:
        return 0.0, 0.0
    knowing = [member for member in members if member.law in OF_REPEATS]
    total = sum(member.weight for member in knowing)
    if total <= 0.0:
        raise FitError(
            f"{num_tokens:.3g} tokens of which {unique_tokens:.3g} are unique repeat their data, and no run of this "
            "fit did, so what that costs is not known; train some runs over repeated data, with a column unique_tokens"
        )
    repeated = replace(inputs, u=np.array([math.log(unique_tokens) - inputs.centre_d]))
    costs, squares = np.zeros(len(knowing)), np.zeros(len(knowing))
    for k, member in enumerate(knowing):
        law = get_law(member.law)
        own, drawn = (
            (law.log_loss(theta, repeated) - law.log_loss(theta, inputs))[:, 0]
            for theta in (member.theta[None], member.draws)
        )
        costs[k], squares[k] = float(own[0]), robust_square(drawn - own)
    weights = np.array([member.weight for member in knowing]) / total
    mean = float(weights @ costs)
    return mean, float(weights @ (squares + (costs - mean) ** 2))


def decays_without_bound(members: Sequence[MemberDraws], level: float) -> tuple[str, ...]:
    """Decay constants of repeated data, "R" and "R_N", on which the resamples set no upper bound at this level.

    Such a repeat may be worth as much as fresh data, for all that the points say.
    """
    found: list[str] = []
    for name in _DECAYS:
        free = mass = 0.0
        for member in members:
            law = get_law(member.law)
            if name in law.parameter_names:
                index = law.parameter_names.index(name)
                most = float(law.bounds(np.zeros(1))[1][index]) - _AS_GOOD_AS_FRESH
                free += member.weight * float((member.draws[:, index] >= most).mean())
                mass += member.weight
        if mass > 0.0 and free > 0.5 * (1.0 - level) * mass:
            found.append(name.removeprefix("log_"))
    return tuple(found)
