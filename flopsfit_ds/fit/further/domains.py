"""Several losses of the same runs, as of code, web and mathematics: a law for each, and whether their optima agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.points.points import Exclusion
from flopsfit_ds.fit.points.reading import load_points
from flopsfit_ds.fit.points.selection import select_points
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.scaling import fit_scaling_law
from flopsfit_ds.spec.fit_options import DEFAULTS


@dataclass(frozen=True, eq=False)
class LawOfLoss:
    """One loss, and its law.

    Attributes:
        column: Where the loss stands.
        fit: Its law; None where its runs do not carry one.
        reason: Why there is none; empty where there is one.
        excluded: Rows left out of this law, with reasons.
    """

    column: str
    fit: ScalingFit | None
    reason: str
    excluded: tuple[Exclusion, ...]


def fit_losses(
    path: str | Path,
    losses: Sequence[str],
    columns: Mapping[str, str] | None = None,
    *,
    level: float = DEFAULTS.level,
    target_compute: float | None = None,
    bootstrap_samples: int = DEFAULTS.bootstrap_samples,
) -> tuple[LawOfLoss, ...]:
    """A law for each of several columns of loss of one table.

    Args:
        path: The table.
        losses: Columns, as the table spells them.
        columns: Quantity -> column for N, D and C, whose spelling is not a common one.
        level: Probability of the intervals.
        target_compute: FLOPs at which the optima are compared; ten times the largest budget without it.
        bootstrap_samples: Resamples for the intervals.

    Raises:
        DataError: The table cannot be read, or has no such column.
        FitError: A column stands twice, or no loss carries a law.
    """
    twice = [column for column in dict.fromkeys(losses) if list(losses).count(column) > 1]
    if twice or len(losses) < 2:
        raise FitError(f"give two or more columns of loss, each once; got {', '.join(losses) or 'none'}")
    found: list[LawOfLoss] = []
    for column in losses:
        table = load_points(path, {**(columns or {}), "loss": column})
        chosen = select_points(table.points)
        excluded = (*table.excluded, *chosen.excluded)
        try:
            fit = fit_scaling_law(
                chosen.points, level=level, target_compute=target_compute, bootstrap_samples=bootstrap_samples,
                diagnostics=False,
            )  # fmt: skip
            found.append(LawOfLoss(column, fit, "", excluded))
        except FitError as error:
            found.append(LawOfLoss(column, None, str(error), excluded))
    if all(law.fit is None for law in found):
        raise FitError("no loss carries a law: " + "; ".join(f"{law.column}: {law.reason}" for law in found))
    return tuple(found)


def optima_differ(laws: Sequence[LawOfLoss]) -> str | None:
    """In words, which losses want other sizes at the target: those whose intervals of N* do not meet."""
    told = [
        (law.column, law.fit.optima[-1].intervals["num_params"])
        for law in laws
        if law.fit is not None and law.fit.optima and "num_params" in law.fit.optima[-1].intervals
    ]
    apart = [
        f"{one} and {other}"
        for k, (one, here) in enumerate(told)
        for other, there in told[k + 1 :]
        if here.high < there.low or there.high < here.low
    ]
    return f"intervals of N* do not meet for {', '.join(apart)}: no one size is best for all" if apart else None
