"""The points a law is fitted to: one finished run each, wherever it came from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN, conventional_flops
from flopsfit_ds.spec.fit_options import COUNT_FIELDS, COUNT_WORDS, DEFAULT_COUNT, ParameterCount

if TYPE_CHECKING:
    from flopsfit_ds.records import RunRecord

CONVENTION = f"C = {FLOPS_PER_PARAMETER_TOKEN} N D"


@dataclass(frozen=True)
class Point:
    """One finished run.

    Attributes:
        num_params: Parameters N.
        num_tokens: Training tokens D.
        loss: Held-out loss, nats per token (any unit, the same for all points).
        flops: Training FLOPs C; None means 6 N D.
        seed: Random seed.
        learning_rate: Peak learning rate, where several were tried.
        label: Name of the run, for people.
        run_id: Identity of the run; points of one run share it.
        unique_tokens: Distinct training tokens, where data was repeated.
        compute_budget_flops: Nominal isoFLOP budget; None means that budgets are inferred from C.
        loss_standard_error: Standard error of `loss` over the held-out set.
        trunk: The run that this one branched off, where it did.
        schedule: How its learning rate ran, such as "cosine" or "wsd".
        row: Where the point stood in its source, counted from 1 at the first row of data; None for a point made by
            hand.
        global_batch: Samples or tokens of an optimiser step, whichever the source counts.
        most_repeats: How often the run went through the source of a mixture that it repeated most; None of one source.
    """

    num_params: float
    num_tokens: float
    loss: float
    flops: float | None = None
    seed: int | None = None
    learning_rate: float | None = None
    label: str | None = None
    run_id: str | None = None
    unique_tokens: float | None = None
    compute_budget_flops: float | None = None
    loss_standard_error: float | None = None
    trunk: str | None = None
    schedule: str | None = None
    row: int | None = None
    most_repeats: float | None = None
    global_batch: float | None = None

    @property
    def compute_flops(self) -> float:
        """Training FLOPs, by the convention 6 N D where none were given."""
        return conventional_flops(self.num_params, self.num_tokens) if self.flops is None else self.flops


@dataclass(frozen=True)
class Exclusion:
    """A row or run that does not enter the fit.

    Attributes:
        row: Its place in the source, counted from 1; None where unknown.
        name: Run id or label, where there is one.
        reason: Why, with the numbers.
    """

    row: int | None
    name: str | None
    reason: str

    @property
    def of_source(self) -> bool:
        """Whether it says how the whole source was read, and leaves no run out."""
        return self.row is None and self.name is None


@dataclass(frozen=True)
class Selection:
    """The points that enter a fit, and those that do not."""

    points: tuple[Point, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True, eq=False)
class PointArrays:
    """Columns of the points, each (points,)."""

    num_params: FloatArray
    num_tokens: FloatArray
    loss: FloatArray
    flops: FloatArray
    unique_tokens: FloatArray | None

    @classmethod
    def of(cls, points: Sequence[Point]) -> "PointArrays":
        """Columns of `points`; `unique_tokens` is None where no point repeats its data."""
        num_tokens = np.array([p.num_tokens for p in points], dtype=np.float64)
        unique = np.array([p.unique_tokens or p.num_tokens for p in points], dtype=np.float64)
        repeats = bool((num_tokens > unique * (1 + 1e-6)).any())
        return cls(
            np.array([p.num_params for p in points], dtype=np.float64),
            num_tokens,
            np.array([p.loss for p in points], dtype=np.float64),
            np.array([p.compute_flops for p in points], dtype=np.float64),
            np.minimum(unique, num_tokens) if repeats else None,
        )


def points_from_records(
    records: Iterable["RunRecord"], *, parameter_count: ParameterCount = DEFAULT_COUNT
) -> Selection:
    """Points of the completed runs of a sweep; the others are listed with their reasons.

    N is the count of all parameters unless `parameter_count` says otherwise (Hoffmann et al. 2022 count all, Kaplan et
    al. 2020 leave out embeddings). D and C are the tokens and FLOPs that were realised.
    """
    points: list[Point] = []
    excluded: list[Exclusion] = []
    for number, record in enumerate(records, start=1):
        reason = None
        if record.status != "completed":
            reason = f"status {record.status}" + (f": {record.reason}" if record.reason else "")
        elif record.loss is None or record.observed is None:
            reason = record.reason or "completed without a held-out loss"
        if reason is not None or record.loss is None or record.observed is None:
            excluded.append(Exclusion(number, record.label or record.run_id, reason or "no loss"))
            continue
        planned = record.planned
        size = getattr(planned, COUNT_FIELDS[parameter_count])
        if size is None:
            why = f"its {COUNT_WORDS[parameter_count]} are not known: not counted when it was planned"
            excluded.append(Exclusion(number, record.label or record.run_id, why))
            continue
        points.append(
            Point(
                num_params=size,
                num_tokens=record.observed.num_tokens,
                loss=record.loss,
                flops=record.observed.flops,
                seed=record.seed,
                learning_rate=record.learning_rate,
                label=record.label,
                run_id=record.run_id,
                unique_tokens=record.unique_tokens,
                most_repeats=max((each.repeats for each in record.sources.values()), default=None),
                compute_budget_flops=record.compute_budget_flops,
                loss_standard_error=record.loss_standard_error,
                trunk=record.trunk,
                row=number,
            )
        )
    return Selection(tuple(points), tuple(excluded))


def told(point: Point) -> dict[str, Any]:
    """The fields of a point as its hash has them: what was added to them later is left out where it is not known."""
    fields = dict(vars(point))
    if point.global_batch is None:
        del fields["global_batch"]
    return fields


def in_order(points: Iterable[Point]) -> tuple[Point, ...]:
    """Points by size, tokens, loss and row: the order in which they enter a fit, whatever the order of the source."""
    return tuple(sorted(points, key=lambda p: (p.num_params, p.num_tokens, p.loss, p.row or 0)))


def with_rows(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that know their place: those without a row get their index, from 1."""
    return tuple(p if p.row is not None else replace(p, row=k) for k, p in enumerate(points, start=1))
