"""Errors of forms on runs that they have not seen, over rolling origins, and the form that they choose."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.forecast.parts.members import seen_at
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.fit.solve.thinned import best_end

_STARTS = 4  # as many as the ensemble's members start from beside the best, see `forecast.parts.members`
_SEEN_OF_A_FAMILY = 3  # fewer do not fix its floor and amplitudes, whatever the form


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What forecasts of later runs came to, one cell for each origin and later budget.

    Attributes:
        errors: Form -> mean size of the error of ln L over the cells.
        cells: Form -> (cells,) mean size of the error of each.
        distances: (cells,) ln of the budget over its origin.
        num_runs: Runs judged, each as often as origins saw it ahead.
    """

    errors: dict[str, float]
    cells: dict[str, FloatArray]
    distances: FloatArray
    num_runs: int

    def error_at(self, form: str, distance: float) -> float:
        """Standard deviation by which forecasts at this distance (ln of compute) are off; nought within the data.

        It grows with the distance: errors of the cells, each over the root of its own distance, in quadrature.
        """
        rate = float((self.cells[form] ** 2 / np.maximum(self.distances, 1e-3)).mean())
        return math.sqrt(rate * distance)


def held_out_errors(
    forms: Mapping[str, tuple[Problem, CertifiedFit]],
    groups: Sequence[Sequence[int]],
    origins: Sequence[int],
    log_compute: FloatArray,
    families: FloatArray | None,
) -> HeldOut | None:
    """Fit each form up to each origin, and look at all later budgets.

    Args:
        forms: Form -> the problem of all runs, and its fit.
        groups: Runs by rising compute.
        origins: Indices of the last group that is seen.
        log_compute: (points,).
        families: (points,) family of each; later runs of a family with fewer than three runs seen are not judged.
    """
    cells: dict[str, list[float]] = {name: [] for name in forms}
    distances: list[float] = []
    judged = 0
    for origin in origins:
        keep = seen_at(groups, origin)
        known = _known(families, keep, len(log_compute))
        later = [[i for i in group if known[i]] for group in groups[origin + 1 :]]
        later = [group for group in later if group]
        here = float(log_compute[list(groups[origin])].mean())
        distances += [float(log_compute[group].mean()) - here for group in later]
        judged += sum(len(group) for group in later)
        for name, (problem, fit) in forms.items():
            seen = problem.points(keep)
            theta = best_end(seen, np.concatenate([fit.theta[None], fit.starts[:_STARTS]]))
            error = np.abs(problem.law.log_loss(theta[None], problem.inputs)[0] - problem.log_loss)
            cells[name] += [float(error[group].mean()) for group in later]
    if not distances:
        return None
    arrays = {name: np.array(values) for name, values in cells.items()}
    return HeldOut({name: float(v.mean()) for name, v in arrays.items()}, arrays, np.array(distances), judged)


def _known(families: FloatArray | None, keep: np.ndarray, count: int) -> np.ndarray:
    if families is None:
        return np.ones(count, dtype=bool)
    seen = families[keep]
    return np.array([(seen == family).sum() >= _SEEN_OF_A_FAMILY for family in families])


def chosen_form(held: HeldOut | None, sizes: Mapping[str, int]) -> tuple[str | None, str]:
    """The form to go by, and why.

    Args:
        held: Errors of the forms; None where nothing could be held out.
        sizes: Form -> number of parameters.
    """
    if held is None:
        most = max(sizes.values())
        return None, (
            f"nothing could be held out: three budgets of compute are needed, and {most + 2} runs in the lower ones; "
            "no form is chosen by its fit"
        )
    best = min(held.errors, key=lambda name: held.errors[name])
    near: list[str] = []
    for name in held.errors:
        excess = held.cells[name] - held.cells[best]
        error = float(excess.std(ddof=1)) / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
        if float(excess.mean()) <= error:
            near.append(name)
    chosen = min(near, key=lambda name: (sizes[name], held.errors[name]))
    told = "the lowest error" if chosen == best else f"within a standard error of {best} ({held.errors[best]:.2%})"
    return chosen, (
        f"{chosen} is off by {held.errors[chosen]:.2%} on runs held out, {told}, with {sizes[chosen]} parameters"
    )
