"""What forms with a further column share: floors, and terms whose logarithms are linear in the parameters."""

from abc import abstractmethod

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.terms import (
    COARSE_EXPONENTS,
    amplitude_bounds,
    exponent_bounds,
    floor_bounds,
    pack_bounds,
)
from flopsfit_ds.fit.losses import FloatArray

Feature = tuple[int, FloatArray | None]
_MOST_TILT = 3.0
"""As an exponent's bound, on either side: how fast an amplitude or an exponent may turn with the column."""


class LogLinear(Law):
    """A floor, a size term and a data term for each group of points; the further column may tilt the terms.

    The first parameters are the floors of the groups, their ln A and their ln B; then come the exponents of size and of
    data, one for all groups or one for each, and last the form's own tilts, which start at nought.

    Attributes:
        groups: Number of groups; `Inputs.column` holds the group of a point where there are several.
        own_exponents: Whether each group has its own.
        tilts: Names of the form's own parameters.
    """

    def __init__(self, groups: int = 1, own_exponents: bool = False, tilts: tuple[str, ...] = ()) -> None:
        self.groups, self.own_exponents, self.tilts = groups, own_exponents, tilts
        ends = [f"_{k}" for k in range(groups)] if groups > 1 else [""]
        powers = ends if own_exponents else [""]
        names = [f"{name}{end}" for name in ("E", "log_A_centred", "log_B_centred") for end in ends]
        self.parameter_names = (*names, *(f"{name}{end}" for name in ("alpha", "beta") for end in powers), *tilts)

    @abstractmethod
    def tilted(self, inputs: Inputs) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """The form's own features of the size term and of the data term, by index among the tilts."""

    def _members(self, inputs: Inputs) -> list[FloatArray | None]:
        """Which points belong to each group, as ones and noughts; None for all of them."""
        if self.groups == 1:
            return [None]
        assert inputs.column is not None
        return [(inputs.column == k).astype(np.float64) for k in range(self.groups)]

    def _features(self, inputs: Inputs) -> tuple[list[Feature], list[Feature]]:
        count, members = self.groups, self._members(inputs)
        powers = count if self.own_exponents else 1
        first = 3 * count
        found: list[list[Feature]] = []
        for number, size in enumerate((inputs.n, inputs.d)):
            term: list[Feature] = [((1 + number) * count + k, member) for k, member in enumerate(members)]
            for k in range(powers):
                member = members[k] if powers > 1 else None
                term.append((first + number * powers + k, -size if member is None else -size * member))
            own = self.tilted(inputs)[number]
            term += [(first + 2 * powers + k, feature) for k, feature in own]
            found.append(term)
        return found[0], found[1]

    def _floor(self, theta: FloatArray, inputs: Inputs) -> Term:
        shape = (len(theta), len(inputs.n))
        value = np.zeros(shape)
        gradient: list[Feature] = []
        second: list[tuple[int, int, FloatArray]] = []
        for k, member in enumerate(self._members(inputs)):
            here = np.ones(len(inputs.n)) if member is None else member
            inverse = here / theta[:, k, None]
            value = value + here * np.log(theta[:, k, None])
            gradient.append((k, inverse))
            second.append((k, k, -inverse * inverse))
        return Term(value, tuple(gradient), tuple(second))

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, size term, data term."""
        found = [self._floor(theta, inputs)]
        for features in self._features(inputs):
            value = np.zeros((len(theta), len(inputs.n)))
            for index, feature in features:
                value = value + theta[:, index, None] * (1.0 if feature is None else feature)
            found.append(Term(value, tuple(features)))
        return found

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla; tilts within 3 on either side."""
        amplitude = amplitude_bounds(log_loss)
        powers = 2 * (self.groups if self.own_exponents else 1)
        pairs = [floor_bounds(log_loss)] * self.groups + [amplitude] * (2 * self.groups)
        return pack_bounds(pairs + [exponent_bounds()] * powers + [(-_MOST_TILT, _MOST_TILT)] * len(self.tilts))

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha and beta, the same for all groups."""
        return COARSE_EXPONENTS, COARSE_EXPONENTS

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in the E, A and B of every group, without tilts."""
        size, data = np.exp(-np.outer(shape[:, 0], inputs.n)), np.exp(-np.outer(shape[:, 1], inputs.d))
        columns = [
            part if member is None else part * member
            for part in (np.ones_like(size), size, data)
            for member in self._members(inputs)
        ]
        target = np.broadcast_to(np.exp(log_loss), size.shape)
        return Linearised(np.stack(columns, axis=1), target, np.ones_like(target))

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """The parameters in their order, tilts at nought."""
        count = self.groups
        powers = np.repeat(shape[:, :2], count if self.own_exponents else 1, axis=1)
        none = np.zeros((len(shape), len(self.tilts)))
        return np.concatenate([amplitudes[:, :count], np.log(amplitudes[:, count:]), powers, none], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """The size term against itself: what is best depends on the column, so no one size is."""
        level, slope = theta[:, self.groups], -theta[:, 3 * self.groups]
        return Competition(level, slope, slope, level, slope, slope)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta, with the number of the group where there are several, and the tilts."""
        values = {name: theta[:, k] for k, name in enumerate(self.parameter_names)}
        count = self.groups
        powers = count if self.own_exponents else 1
        for k in range(count):
            end = f"_{k}" if count > 1 else ""
            own = k if powers > 1 else 0
            for name, centre, at in (("A", inputs.centre_n, 3 * count), ("B", inputs.centre_d, 3 * count + powers)):
                values[name + end] = np.exp(values.pop(f"log_{name}_centred{end}") + theta[:, at + own] * centre)
        return values
