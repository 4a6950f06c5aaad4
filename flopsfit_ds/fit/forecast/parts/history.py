"""What the past of a table says of its future: weights of the members, their drift, and how fast their errors grow.

Every origin is a forecast that this very table can check: the members fitted on the budgets up to it, on the budgets
after it. From these errors come

- weights: by likelihood, tempered so that one more budget does not turn them over, and by each member's own errors of
  extrapolation (stacking), shrunk to the median member;
- drift: the mean signed error an e-fold of compute, shrunk towards nought, which the centre is corrected by;
- growth: the root mean square of what is left an e-fold, beyond the noise of the runs, shrunk towards a prior.

The constants were set on eight public tables cut at 60 budgets, 2,860 predictions 2 to 300 times beyond the cut.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.forecast.parts.members import Member, OriginFit, seen_at
from flopsfit_ds.fit.losses import FloatArray

LEAST_DISTANCE = 0.2
"""E-folds of compute: an error so near the data is not taken for one of extrapolation."""
# The next two and the priors below by `study_forecasts.py --constant`, over 237 predictions of two public tables (C4 of
# mlfoundations/scaling and marin's nemotron grid), where 90% intervals covered 86% with an interval score of 11.1.
_TEMPER = 0.2
"""Power on likelihoods. 0.05 covered 87% with a score of 11.9, 0.8 covered 84% with 10.8."""
_SHARE_STACKED = 0.6
"""Of the weights, by errors of earlier forecasts. 0 covered 74%; 1 covered 87% with a score of 12.2."""
_REFUTED = 5.0
"""A form whose noise is so many times that of the best has no weight: on public tables all forms lie within a factor of
two, on the points of an exact law within a million."""
_LEAST_TRIALS = 2
_MOST_ERROR = 0.03
"""An e-fold, in stacking: one wild origin must not decide."""
_PRIOR_GROWTH = 0.002  # half of it covered 85%, twice as much 90% of those predictions
_PRIOR_GROWTH_OF_NOISE = 0.4
"""The prior of growth, an e-fold: so much, and this share of the noise of the runs. Tables with noisy runs hold
mistuned ones, whose errors grow: a share of nought covered 80%, .3 covers 86%, .5 covers 89% of all predictions."""
_PRIOR_LOOKS = 2.0  # the prior counts for so many looks; 1 covered 88%, 4 86% of them
_PRIOR_LOOKS_DRIFT = 3.0  # the same of the drift; 1.5 covered 89%, 6 86%
_MOST_GROWTH = 60.0
"""Times the prior's square, of a single look."""
_MOST_DRIFT = 8.0
"""Times the prior, of a single look."""
_BLIND = 4.0
"""On the square of the growth, where nothing could be held out."""


@dataclass(frozen=True, eq=False)
class History:
    """What the members' past forecasts came to.

    Attributes:
        weights: (members,), sum to one.
        noise: Standard deviation of ln L of one run.
        drift: What is added to ln L of the centre, an e-fold beyond the data.
        growth: Standard deviation of what is left, an e-fold beyond the data.
        num_looks: Pairs of an origin and a later budget that were looked at; nought where nothing could be held out.
    """

    weights: FloatArray
    noise: float
    drift: float
    growth: float
    num_looks: int


@dataclass(frozen=True, eq=False)
class _Look:
    """An origin's forecast of one later budget.

    Attributes:
        member_errors: Member -> mean of ln(predicted) - ln(observed).
        errors: (points,) of the weighted centre.
        noise: Of the weighted members there.
        distance: E-folds of compute beyond the origin.
        share: Points that the origin saw, over all.
    """

    member_errors: dict[int, float]
    errors: FloatArray
    noise: float
    distance: float
    share: float


def look_back(
    members: Sequence[Member], groups: Sequence[Sequence[int]], log_compute: FloatArray, log_loss: FloatArray
) -> History:
    """Weights, drift and growth from the origins of all members.

    Args:
        members: Of all forms.
        groups: Points by rising compute; fewer than three mean that nothing can be held out.
        log_compute: (points,) ln FLOPs.
        log_loss: (points,) observed.
    """
    looks = list(_looks(members, groups, log_compute, log_loss))
    weights = _weigh(dict(enumerate(members)), looks)
    each = np.array([weights[number] for number in range(len(members))])
    noise = math.sqrt(float(each @ np.array([member.noise**2 for member in members])))
    prior = math.hypot(_PRIOR_GROWTH, _PRIOR_GROWTH_OF_NOISE * noise)
    if not looks:
        return History(each, noise, 0.0, math.sqrt(_BLIND) * prior, 0)
    mass = sum(look.share for look in looks)
    signed = (np.clip(-look.errors.mean() / look.distance, -_MOST_DRIFT * prior, _MOST_DRIFT * prior) for look in looks)
    drift = sum(look.share * float(value) for look, value in zip(looks, signed, strict=True))
    drift /= mass + _PRIOR_LOOKS_DRIFT
    square = _PRIOR_LOOKS * prior**2
    for look in looks:
        left = float(((look.errors + drift * look.distance) ** 2).mean()) - look.noise**2
        square += look.share * min(max(0.0, left) / look.distance**2, _MOST_GROWTH * prior**2)
    return History(each, noise, drift, math.sqrt(square / (mass + _PRIOR_LOOKS)), len(looks))


def _looks(
    members: Sequence[Member], groups: Sequence[Sequence[int]], log_compute: FloatArray, log_loss: FloatArray
) -> Iterator[_Look]:
    """All looks, origin by origin; each origin weighs the members by what the origins before it showed."""
    earlier: list[_Look] = []
    for origin in sorted({origin for member in members for origin in member.origins}):
        fits = {number: member.origins[origin] for number, member in enumerate(members) if origin in member.origins}
        weights = _weigh(fits, earlier)
        centre = np.sum([weights[number] * fit.log_loss for number, fit in fits.items()], axis=0)
        noise = math.sqrt(sum(weights[number] * fit.noise**2 for number, fit in fits.items()))
        keep = seen_at(groups, origin)
        edge = float(log_compute[keep].max())
        here: list[_Look] = []
        for group in groups[origin + 1 :]:
            index = np.asarray(group)
            member_errors = {number: float((fit.log_loss - log_loss)[index].mean()) for number, fit in fits.items()}
            distance = max(float(log_compute[index].mean()) - edge, LEAST_DISTANCE)
            errors = (centre - log_loss)[index]
            here.append(_Look(member_errors, errors, noise, distance, len(keep) / len(log_loss)))
        yield from here
        earlier += here


def _weigh(fits: Mapping[int, Member | OriginFit], looks: Sequence[_Look]) -> dict[int, float]:
    """Weights of members by their likelihood and by their errors in these looks; nought for those that are refuted."""
    least = min(fit.noise for fit in fits.values())
    numbers = [number for number, fit in fits.items() if fit.noise <= _REFUTED * least]
    numbers = [number for number in numbers if not fits[number].on_trial or _has_earned(number, looks)]
    tempered = _softmax(_TEMPER * np.array([fits[number].log_likelihood for number in numbers]))
    total, count = np.zeros(len(numbers)), np.zeros(len(numbers))
    for look in looks:
        for position, number in enumerate(numbers):
            if number in look.member_errors:
                total[position] += min(abs(look.member_errors[number]) / look.distance, _MOST_ERROR) ** 2
                count[position] += 1
    stacked = np.full(len(numbers), 1.0 / len(numbers))
    if count.any():
        median = float(np.median(total[count > 0] / count[count > 0]))
        stacked = ((total + median) / (count + 1) + 1e-8) ** -2.0
        stacked /= stacked.sum()
    mixed = (1.0 - _SHARE_STACKED) * tempered + _SHARE_STACKED * stacked
    return dict.fromkeys(fits, 0.0) | {number: float(weight) for number, weight in zip(numbers, mixed, strict=True)}


def _has_earned(number: int, looks: Sequence[_Look]) -> bool:
    """Whether a member's errors in these looks, two at least, were smaller than those of the median member."""
    shared = [look.member_errors for look in looks if number in look.member_errors]
    if len(shared) < _LEAST_TRIALS:
        return False
    everyone = set.intersection(*(set(errors) for errors in shared))
    squares = {member: sum(errors[member] ** 2 for errors in shared) for member in everyone}
    return squares[number] < float(np.median([squares[member] for member in everyone if member != number] or [0.0]))


def _softmax(values: FloatArray) -> FloatArray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()
