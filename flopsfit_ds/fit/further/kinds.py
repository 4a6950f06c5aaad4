"""What a further column holds, as the forms of law read it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.laws.further.experts import EffectiveExperts, JointExperts, TotalParameters
from flopsfit_ds.fit.laws.further.families import OneLaw, OwnExponents, SharedExponents
from flopsfit_ds.fit.laws.further.precision import EffectiveBits
from flopsfit_ds.fit.losses import FloatArray

_LEAST_OF_A_FAMILY = 4
"""Three parameters of its own, and one run to tell noise by."""


@dataclass(frozen=True)
class Kind:
    """A kind of column.

    Attributes:
        name: As `fit_column` is told.
        words: For people.
        laws: Number of families -> the forms to compare, the simplest first.
    """

    name: str
    words: str
    laws: Callable[[int], list[Law]]

    def one(self, value: float | str, num_params: float, groups: tuple[str, ...]) -> float:
        """One value as the forms read it.

        Raises:
            FitError: It means nothing to this kind.
        """
        if self.name == "family":
            if str(value) not in groups:
                raise FitError(f"no family {str(value)!r} among {', '.join(groups)}")
            return float(groups.index(str(value)))
        number = float(value)
        if not (math.isfinite(number) and number > 0):
            raise FitError(f"{self.words} must be positive and finite, got {number:g}")
        if self.name == "bits":
            return number
        if number < num_params * (1.0 - 1e-9):
            raise FitError(f"{number:.4g} total parameters are fewer than the {num_params:.4g} active ones")
        return math.log(number / num_params)

    def column(self, values: Sequence[float | str], sizes: FloatArray) -> tuple[FloatArray, tuple[str, ...]]:
        """All values as the forms read them, and the families.

        Raises:
            FitError: A value means nothing, the column never varies, or a family has too few runs.
        """
        groups = tuple(sorted({str(value) for value in values})) if self.name == "family" else ()
        found = np.array([self.one(v, float(n), groups) for v, n in zip(values, sizes, strict=True)])
        if np.ptp(found) == 0.0:
            alike = f" ({groups[0]})" if groups else ""
            raise FitError(f"{self.words} never vary{alike}: the column says nothing; fit the law without it")
        for number, name in enumerate(groups):
            count = int((found == number).sum())
            if count < _LEAST_OF_A_FAMILY:
                raise FitError(
                    f"family {name!r} has {count} runs: at least {_LEAST_OF_A_FAMILY} are needed for its floor and "
                    "amplitudes; leave it out, or train more"
                )
        return found, groups


KINDS = {
    kind.name: kind
    for kind in (
        Kind("family", "families", lambda count: [OneLaw(), SharedExponents(count), OwnExponents(count)]),
        Kind(
            "total-params",
            "ratios of total to active parameters",
            lambda _: [OneLaw(), TotalParameters(), EffectiveExperts(), JointExperts()],
        ),
        Kind("bits", "bits of the weights", lambda _: [OneLaw(), EffectiveBits()]),
    )
}


def column_kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        FitError: There is none.
    """
    if name not in KINDS:
        raise FitError(f"unknown kind of column {name!r}: choose one of {', '.join(KINDS)}")
    return KINDS[name]
