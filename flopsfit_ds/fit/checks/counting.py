"""What mistakes of counting and unit look like in a table: embeddings in N and not in C, C = 2 N D, N in millions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit.checks.view import FitWarning
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN

_FAR_FROM_SIX = 3.0
"""A multiply and an add counted as one operation give a factor of two, the forward pass alone three."""
_KNOWN_RATIOS = {
    1.0: "the forward pass alone, a multiply and an add as one operation",
    2.0: "the forward pass alone; training takes three times as much",
    3.0: "a multiply and an add as one operation",
    8.0: "as where the forward pass is computed twice",
}
_SAME_RATIO = 0.02
_DRIFT = 0.1
"""Of ln(C/(N D)) between the smallest and the largest size: 10% of compute is 5% of N* where N* ~ C^0.5."""
_STRAIGHT = 0.9
_LEAST_SIZE = 1e4
_LOSS_OF_LANGUAGE = (1.0, 12.0)
"""Nats per token: twelve are those of guessing among 160,000 tokens."""


def counting_warnings(arrays: PointArrays) -> Iterator[FitWarning]:
    """Each mistake of counting that these columns show."""
    yield from _units(arrays)
    yield from _flops(arrays)
    yield from _embeddings(arrays)


def _units(arrays: PointArrays) -> Iterator[FitWarning]:
    largest, loss = float(arrays.num_params.max()), float(np.median(arrays.loss))
    if largest < _LEAST_SIZE and _LOSS_OF_LANGUAGE[0] < loss < _LOSS_OF_LANGUAGE[1]:
        yield FitWarning(
            "unlikely_units",
            f"N runs from {arrays.num_params.min():.3g} to {largest:.3g} at losses about {loss:.3g}: no language model "
            "is so small; where the column is in millions or billions, call it `params (M)` or so, and likewise tokens",
        )


def _flops(arrays: PointArrays) -> Iterator[FitWarning]:
    ratio = arrays.flops / arrays.num_params / arrays.num_tokens
    low, high = float(ratio.min()), float(ratio.max())
    for known, meaning in _KNOWN_RATIOS.items():
        if float(np.abs(np.log(ratio / known)).max()) < _SAME_RATIO:
            yield FitWarning(
                "unusual_flops",
                f"C is {known:g} N D throughout where training is about {FLOPS_PER_PARAMETER_TOKEN} N D: {meaning}. N* "
                "and D* of a budget are off by the same factor unless your budgets are counted so too",
            )
            return
    if max(high / FLOPS_PER_PARAMETER_TOKEN, FLOPS_PER_PARAMETER_TOKEN / low) > _FAR_FROM_SIX:
        yield FitWarning(
            "unusual_flops",
            f"FLOPs are {low:.3g} to {high:.3g} times N D where about {FLOPS_PER_PARAMETER_TOKEN} is usual: check the "
            "unit of FLOPs, tokens and parameters; N* and D* of a budget follow it",
        )


@dataclass(frozen=True)
class CountingDrift:
    """How C/(N D) changes with size.

    Attributes:
        smallest: Its value at the smallest size.
        largest: At the largest.
        counts: "more in N": it rises towards six, as where look-up tables, a large part of small models, are in N and
            not in C. "more in C": it falls towards six, as where N leaves out the head. "unclear": it changes
            otherwise.
    """

    smallest: float
    largest: float
    counts: Literal["alike", "more in N", "more in C", "unclear"]


def counting_drift(arrays: PointArrays) -> CountingDrift:
    """Whether C and N count alike over all sizes."""
    log_n = np.log(arrays.num_params)
    log_ratio = _log_ratio_to_six(arrays)
    small, large = (FLOPS_PER_PARAMETER_TOKEN * math.exp(log_ratio[int(k)]) for k in (log_n.argmin(), log_n.argmax()))
    if np.ptp(log_n) == 0.0 or np.ptp(log_ratio) < _DRIFT:
        return CountingDrift(small, large, "alike")
    rank = np.corrcoef(log_n.argsort().argsort(), log_ratio.argsort().argsort())[0, 1]
    if rank >= _STRAIGHT and log_ratio.max() <= _DRIFT:
        return CountingDrift(small, large, "more in N")
    if rank <= -_STRAIGHT and log_ratio.min() >= -_DRIFT:
        return CountingDrift(small, large, "more in C")
    return CountingDrift(small, large, "unclear")


def six_throughout(arrays: PointArrays) -> bool:
    """Whether C is 6 N D at every point, up to rounding."""
    return float(np.abs(_log_ratio_to_six(arrays)).max()) < _SAME_RATIO


def _log_ratio_to_six(arrays: PointArrays) -> FloatArray:
    return np.log(arrays.flops / arrays.num_params / arrays.num_tokens / FLOPS_PER_PARAMETER_TOKEN)


def _embeddings(arrays: PointArrays) -> Iterator[FitWarning]:
    drift = counting_drift(arrays)
    if drift.counts != "more in N":
        return
    sizes = format_count(arrays.num_params.min()), format_count(arrays.num_params.max())
    ends = [f"{ratio:.3g} at {size}" for ratio, size in zip((drift.smallest, drift.largest), sizes, strict=True)]
    yield FitWarning(
        "embeddings_in_n",
        f"C/(N D) rises with size towards {FLOPS_PER_PARAMETER_TOKEN}, from {' to '.join(ends)}: as where N counts "
        "embeddings and C does not. Exponents change with it (Pearce and Song 2024); count both alike",
    )
