"""What every scaling law has in common: a sum of positive terms, evaluated for many parameter vectors at once.

A law is the logarithm of a sum of exponentials (log-sum-exp) of its terms' logarithms. A form gives its terms and their
derivatives; this module turns them into the prediction, its Jacobian and its curvature. All sizes enter as centred
logarithms, n = ln N - mean and d = ln D - mean, and all amplitudes as logarithms, so a change of units changes nothing
and the columns of the Jacobian stay comparable.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flopsfit_ds.fit.compute_rule import ComputeRule, Stretch
from flopsfit_ds.fit.losses import FloatArray

FLOOR = "E"
"""What every form with a floor calls it."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The sizes of the points as centred natural logarithms, each of shape (points,).

    Attributes:
        n: ln(parameters) - centre_n.
        d: ln(tokens) - centre_d.
        centre_n: Mean of ln(parameters) over the points of the fit.
        centre_d: Mean of ln(tokens) over the points of the fit.
        u: ln(unique tokens) - centre_d, or None where no point repeats its data.
        column: The further column of the forms in `laws.further`, in their own unit; None for the other forms.
    """

    n: FloatArray
    d: FloatArray
    centre_n: float
    centre_d: float
    u: FloatArray | None = None
    column: FloatArray | None = None

    @classmethod
    def centred(
        cls, num_params: FloatArray, num_tokens: FloatArray, unique_tokens: FloatArray | None = None
    ) -> "Inputs":
        """Centre the sizes on their own means."""
        log_n, log_d = np.log(num_params), np.log(num_tokens)
        here = cls(np.zeros(0), np.zeros(0), float(log_n.mean()), float(log_d.mean()))
        return here.at(log_n, log_d, None if unique_tokens is None else np.log(unique_tokens))

    def at(self, log_n: FloatArray, log_d: FloatArray, log_unique: FloatArray | None = None) -> "Inputs":
        """Other sizes (natural logarithms) about the same centres."""
        u = None if log_unique is None else log_unique - self.centre_d
        return Inputs(log_n - self.centre_n, log_d - self.centre_d, self.centre_n, self.centre_d, u)

    def rows(self, index: np.ndarray | slice) -> "Inputs":
        """The points at `index`, about the same centres."""
        u = None if self.u is None else self.u[index]
        column = None if self.column is None else self.column[index]
        return Inputs(self.n[index], self.d[index], self.centre_n, self.centre_d, u, column)


class Term(NamedTuple):
    """One positive term of a law.

    Attributes:
        log_value: Its logarithm, (batch, points).
        gradient: (parameter index, derivative of log_value) pairs; a derivative is (points,) or (batch, points), or
            None for 1.
        second: (i, j, second derivative of log_value) triples, i <= j, each once.
    """

    log_value: FloatArray
    gradient: tuple[tuple[int, FloatArray | None], ...]
    second: tuple[tuple[int, int, FloatArray], ...] = ()


class Competition(NamedTuple):
    """The two terms whose balance sets the optimum: ln value = const + by_n * n + by_d * d, each (batch,)."""

    const_p: FloatArray
    by_n_p: FloatArray
    by_d_p: FloatArray
    const_q: FloatArray
    by_n_q: FloatArray
    by_d_q: FloatArray


class Linearised(NamedTuple):
    """For fixed exponents, a law as a linear least-squares problem in its amplitudes (variable projection).

    Attributes:
        columns: (grid, amplitudes, points).
        target: (grid, points).
        weight: (grid, points) factor that turns a relative error of target into an error of log loss.
    """

    columns: FloatArray
    target: FloatArray
    weight: FloatArray


@dataclass(eq=False)
class Evaluation:
    """A law at a batch of parameters, with what its derivatives need."""

    terms: Sequence[Term]
    shares: list[FloatArray]
    log_loss: FloatArray
    num_parameters: int

    def jacobian(self) -> FloatArray:
        """d log L / d theta, (batch, parameters, points)."""
        batch, points = self.log_loss.shape
        jacobian = np.zeros((batch, self.num_parameters, points))
        touched: set[int] = set()
        for term, share in zip(self.terms, self.shares, strict=True):
            for index, slope in term.gradient:
                row = jacobian[:, index, :]
                if index in touched:
                    row += share if slope is None else share * slope
                elif slope is None:
                    row[...] = share
                else:
                    np.multiply(share, slope, out=row)
                touched.add(index)
        return jacobian

    def term_curvature(self, weight: FloatArray) -> FloatArray:
        """Sum over points of weight * share * (gradient gradient^T + second), summed over terms.

        The Hessian of log-sum-exp is this minus jacobian * weight * jacobian^T.

        Args:
            weight: (batch, points).

        Returns:
            (batch, parameters, parameters), symmetric.
        """
        size = self.num_parameters
        result = np.zeros((weight.shape[0], size, size))
        for term, share in zip(self.terms, self.shares, strict=True):
            weighted = weight * share
            for a, (i, slope_i) in enumerate(term.gradient):
                left = weighted if slope_i is None or slope_i.ndim == 1 else weighted * slope_i
                fixed = slope_i if slope_i is not None and slope_i.ndim == 1 else None
                for j, slope_j in term.gradient[a:]:
                    value = _contract(left, fixed, slope_j)
                    result[:, i, j] += value
                    if i != j:
                        result[:, j, i] += value
            for i, j, second in term.second:
                value = _contract(weighted, None, second)
                result[:, i, j] += value
                if i != j:
                    result[:, j, i] += value
        return result

    def point_curvature(self) -> FloatArray:
        """The share * (gradient gradient^T + second) of every point, (parameters, parameters, points), of one row."""
        size, points = self.num_parameters, self.log_loss.shape[1]
        result = np.zeros((size, size, points))
        for term, share in zip(self.terms, self.shares, strict=True):
            slopes = [
                (index, np.ones(points) if slope is None else np.broadcast_to(slope, (1, points))[0])
                for index, slope in term.gradient
            ]
            for i, slope_i in slopes:
                for j, slope_j in slopes:
                    result[i, j] += share[0] * slope_i * slope_j
            for i, j, second in term.second:
                value = share[0] * np.broadcast_to(second, (1, points))[0]
                result[i, j] += value
                if i != j:
                    result[j, i] += value
        return result


def _contract(left: FloatArray, fixed: FloatArray | None, slope: FloatArray | None) -> FloatArray:
    """Sum over points of left * fixed * slope, by matrix-vector products where a factor is shared by the batch."""
    if slope is None:
        return left.sum(axis=1) if fixed is None else left @ fixed
    if slope.ndim == 1:
        return left @ (slope if fixed is None else fixed * slope)
    product = left * slope
    return product.sum(axis=1) if fixed is None else product @ fixed


class Law(ABC):
    """A form of scaling law, for a batch of parameter vectors theta (batch, parameters)."""

    name: str
    formula: str
    source: str
    parameter_names: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Number of fitted parameters."""
        return len(self.parameter_names)

    @abstractmethod
    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """The terms of the law at each point."""

    @abstractmethod
    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds of theta, each (parameters,)."""

    @abstractmethod
    def grid(self) -> tuple[FloatArray, ...]:
        """One axis of values for each parameter that variable projection does not solve for."""

    @abstractmethod
    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """The least-squares problem in the amplitudes at each row of `shape` (grid, axes)."""

    @abstractmethod
    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """theta from the grid values and the (positive) amplitudes."""

    @abstractmethod
    def competition(self, theta: FloatArray) -> Competition:
        """The two terms that compete at fixed compute."""

    @abstractmethod
    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """Parameters in the units of the data: loss_floor, A, B, alpha, beta (and the form's own), each (batch,)."""

    def stored(self, theta: FloatArray) -> FloatArray:
        """theta (..., parameters) in the coordinates of fit.json."""
        return theta

    def from_stored(self, stored: FloatArray) -> FloatArray:
        """theta of the coordinates of fit.json."""
        return stored

    def evaluate(self, theta: FloatArray, inputs: Inputs) -> Evaluation:
        """Prediction and the shares of its terms at every point."""
        terms = self.terms(theta, inputs)
        if len(terms) == 1:
            return Evaluation(terms, [np.ones_like(terms[0].log_value)], terms[0].log_value, self.num_parameters)
        top = terms[0].log_value
        for term in terms[1:]:
            top = np.maximum(top, term.log_value)
        shares = [np.exp(term.log_value - top) for term in terms]
        total = shares[0] + shares[1]
        for share in shares[2:]:
            total += share
        inverse = 1.0 / total
        for share in shares:
            share *= inverse
        return Evaluation(terms, shares, top + np.log(total), self.num_parameters)

    def log_loss(self, theta: FloatArray, inputs: Inputs) -> FloatArray:
        """Predicted log loss, (batch, points)."""
        return self.evaluate(theta, inputs).log_loss

    def log_optimum(self, theta: FloatArray, log_compute: FloatArray, trade: ComputeRule, inputs: Inputs) -> FloatArray:
        """ln N* at each compute, (batch, computes); NaN where the form has no interior optimum.

        On a stretch of sizes on which C/(N D) is a power law of N both competing terms are power laws of N at fixed
        compute, so the optimum is where their slopes cancel; of several stretches the best one counts.

        Args:
            log_compute: Natural logarithm of FLOPs, (computes,).
            trade: How compute divides into parameters and tokens.
        """
        c, log_c = self.competition(theta), np.asarray(log_compute)
        stretches = trade.stretches()
        beyond = _balance(c, log_c, stretches[-1], inputs)
        if len(stretches) == 1:
            return beyond
        ends = [np.full_like(beyond, size) for size in trade.log_sizes]
        within = [np.clip(_balance(c, log_c, s, inputs), s.low, s.high) for s in stretches]
        sizes = np.stack([*within, *ends])
        n, d = sizes - inputs.centre_n, trade.log_tokens(log_c, sizes) - inputs.centre_d
        log_p, log_q = (
            const[:, None] + by_n[:, None] * n + by_d[:, None] * d
            for const, by_n, by_d in ((c.const_p, c.by_n_p, c.by_d_p), (c.const_q, c.by_n_q, c.by_d_q))
        )
        value = np.logaddexp(log_p, log_q)
        best = np.where(np.isnan(value), np.inf, value).argmin(axis=0)
        found = np.take_along_axis(sizes, best[None], axis=0)[0]
        return np.where(np.isnan(beyond), np.nan, found)

    def size_exponent_of_compute(self, theta: FloatArray) -> FloatArray:
        """The exponent a of N* ~ C^a where C/(N D) does not depend on N, (batch,)."""
        c = self.competition(theta)
        return (c.by_d_p - c.by_d_q) / ((c.by_n_q - c.by_d_q) - (c.by_n_p - c.by_d_p))


def _balance(c: Competition, log_compute: FloatArray, stretch: Stretch, inputs: Inputs) -> FloatArray:
    """ln N at which the slopes of the two terms cancel, as if the stretch had no ends; NaN where they never do."""
    power = 1.0 + stretch.size_exponent
    d_start = log_compute - stretch.log_factor - inputs.centre_d - power * inputs.centre_n
    slope_p, slope_q = c.by_n_p - power * c.by_d_p, c.by_n_q - power * c.by_d_q
    start_p = c.const_p[:, None] + c.by_d_p[:, None] * d_start
    start_q = c.const_q[:, None] + c.by_d_q[:, None] * d_start
    valid = (slope_p < 0) & (slope_q > 0)
    ratio = np.where(valid, np.log(np.where(valid, -slope_p / np.where(slope_q > 0, slope_q, 1.0), 1.0)), np.nan)
    span = np.where(valid, slope_q - slope_p, np.nan)
    return inputs.centre_n + (ratio[:, None] + start_p - start_q) / span[:, None]
