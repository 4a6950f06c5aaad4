"""How a law is fitted: the options and their defaults, stated once for specs, the library and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LawName = Literal[
    "chinchilla",
    "chinchilla-tied",
    "kaplan",
    "overtraining",
    "data-constrained",
    "excess-parameters",
    "interaction",
    "compute",
]
LossName = Literal["huber_log", "squared_log", "huber", "squared", "lower_huber_log"]
Resampling = Literal["points", "clusters", "wild"]
ParameterCount = Literal["total", "non-embedding", "active", "matrices"]

DEFAULT_COUNT: ParameterCount = "total"
"""What N of a record counts: Hoffmann et al. 2022 count all parameters, Kaplan et al. 2020 leave out embeddings."""
COUNT_WORDS: dict[ParameterCount, str] = {
    "total": "parameters",
    "non-embedding": "non-embedding parameters",
    "active": "active parameters",
    "matrices": "parameters in matrices",
}
"""What N counts, for people: active ones leave out the experts that a token is not sent to; matrices are those that are
multiplied by, the output head among them."""


def count_in_words(count: ParameterCount) -> str:
    """What N counts, where it stands alone."""
    return "all parameters" if count == "total" else COUNT_WORDS[count]


COUNT_FIELDS: dict[ParameterCount, str] = {
    "total": "num_params_total",
    "non-embedding": "num_params_non_embedding",
    "active": "num_params_active",
    "matrices": "num_params_matrices",
}
"""Where a plan and the planned part of a record hold them."""
LEAST_RESAMPLES = 20
"""Fewer leave no resample outside a 90% interval on either side: one in twenty lies beyond each end."""
TARGET_FACTOR = 10.0
"""Without a target, the run to be predicted is this many times the largest budget: one decade beyond the data."""


@dataclass(frozen=True)
class FitOptions:
    """How to fit, for any table of points.

    Attributes:
        law: Form of the law. Hoffmann et al. 2022, eq. 2, by default: its exponents of size and data are free.
        loss: What the solver minimises. Huber on the log loss is that of Hoffmann et al. 2022, appendix D.2;
            "lower_huber_log" lets runs above the law pull less, for tables whose small runs are under-tuned.
        huber_delta: Where a Huber loss turns from square to linear; 1e-3 is that of Hoffmann et al. 2022.
        bootstrap_samples: Resamples for the intervals; 0 for none.
        bootstrap: What is resampled.
        level: Probability of the intervals.
        target_compute: FLOPs of the run to be predicted; None means TARGET_FACTOR times the largest budget.
        seed: Of the resampling.
        other_forms: Whether other forms of law enter the prediction intervals.
        diagnostics: Whether to run the diagnostics: back-test, sensitivity, leverage, profiles.
        loss_floor: E, where it is known, such as the entropy of the text; None to fit it.
    """

    law: LawName = "chinchilla"
    loss: LossName = "huber_log"
    huber_delta: float = 1e-3
    bootstrap_samples: int = 1000
    bootstrap: Resampling = "points"
    level: float = 0.9
    target_compute: float | None = None
    seed: int = 0
    other_forms: bool = True
    diagnostics: bool = True
    loss_floor: float | None = None


DEFAULTS = FitOptions()
