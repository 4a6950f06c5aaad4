"""Points that are not independent: checkpoints of a run, branches of a trunk, seeds of one size and tokens.

They share what went right or wrong in their run, so resampling them one by one makes intervals too narrow. They are
found by columns (run id, trunk, seed), or by names that differ in a step alone, and are resampled together.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Exclusion, Point
from flopsfit_ds.spec.fit_options import Resampling

LEAST_CLUSTERS = 6
"""Fewer groups give fewer than 462 different resamples: their percentiles are too coarse for an interval."""
DECAYING = ("cosine", "linear")
_STEP = re.compile(
    r"[-_/. @:]*(?:global_?)?(?:step|steps|ckpt|checkpoint|iter|iteration|tok|tokens)[-_=. ]*\d+(?:\.\d+)?[kmbt]?$",
    re.IGNORECASE,
)
_SEED_DOF = 6
"""A variance from six degrees of freedom is known to a factor of 1.6."""
_SHRINK = 4.0
"""Degrees of freedom that the pooled variance counts for beside a size's own. Chosen, as in `forecast/valley.py`."""
_MOST_OF_NOISE = 0.9
"""Chosen: a tenth of the scatter is the runs' own, or weights by evaluation error alone would rule the fit."""
_UNLIKE = 1.2
"""Weights of points count where the largest is so many times the smallest."""


@dataclass(frozen=True, eq=False)
class Dependence:
    """Which points belong together.

    Attributes:
        labels: (points,) number of the group of each point.
        found: What was found, in words; empty where all points are independent.
        of_one_run: Whether checkpoints of one run are among them.
    """

    labels: np.ndarray
    found: tuple[str, ...]
    of_one_run: bool

    @property
    def num_groups(self) -> int:
        """Independent groups."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0


def run_of(point: Point) -> Hashable | None:
    """What the checkpoints of a run share: its id, or its size and its name without the step; None without either.

    A name without a step is none: people name runs by their size.
    """
    if point.run_id is not None:
        return point.run_id
    stem = None if point.label is None else _STEP.sub("", point.label)
    return None if stem == point.label else (stem, round(float(np.log(point.num_params)), 3))


def dependence_of(points: Sequence[Point]) -> Dependence:
    """Groups of points that share a run, a trunk, or size and tokens under different seeds."""
    joined = _Groups(len(points))
    found: list[str] = []
    checkpoints = _checkpoints(points)
    for name, groups in (
        ("checkpoints of one run", checkpoints),
        ("branches of one trunk", _branches(points)),
        ("seeds of one size and tokens", _seeds(points)),
    ):
        count, groups_found = 0, 0
        for group in groups:
            joined.join(group)
            count, groups_found = count + len(group), groups_found + 1
        if count:
            found.append(f"{count} are {name} ({groups_found} such groups)")
    return Dependence(joined.labels(), tuple(found), bool(checkpoints))


def _by(points: Sequence[Point], keys: Sequence[Hashable | None]) -> list[list[int]]:
    """Indices of the points that share a key, two or more each; None is no key."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _checkpoints(points: Sequence[Point]) -> list[list[int]]:
    """Points of one run at different tokens."""
    groups = _by(points, [run_of(point) for point in points])
    return [group for group in groups if len({round(np.log(points[k].num_tokens), 4) for k in group}) > 1]


def _branches(points: Sequence[Point]) -> list[list[int]]:
    """Points with one trunk, and the trunk itself."""
    trunks = {point.trunk for point in points if point.trunk is not None}
    return _by(points, [p.trunk if p.trunk is not None else next((n for n in (p.run_id, p.label) if n in trunks), None)
                        for p in points])  # fmt: skip


def _seeds(points: Sequence[Point]) -> list[list[int]]:
    """Points of one size, tokens and learning rate under different seeds."""
    keys = [
        None
        if p.seed is None
        else (round(np.log(p.num_params), 4), round(np.log(p.num_tokens), 3), p.compute_budget_flops, p.learning_rate)
        for p in points
    ]
    return [group for group in _by(points, keys) if len({points[k].seed for k in group}) > 1]


class _Groups:
    """Groups that grow together where they share a point."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def _root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def join(self, group: Sequence[int]) -> None:
        for index in group[1:]:
            self.parent[self._root(index)] = self._root(group[0])

    def labels(self) -> np.ndarray:
        numbers: dict[int, int] = {}
        roots = [self._root(index) for index in range(len(self.parent))]
        return np.array([numbers.setdefault(root, len(numbers)) for root in roots], dtype=np.int64)


def cluster_labels(points: Sequence[Point]) -> np.ndarray:
    """Which cluster each point belongs to, (points,): what depends on each other where there is some, else its size."""
    found = dependence_of(points)
    if found.found:
        return found.labels
    index: dict[float, int] = {}
    return np.array([index.setdefault(round(float(np.log(p.num_params)), 3), len(index)) for p in points])


def resampled_kind(points: Sequence[Point], asked: Resampling) -> Resampling:
    """What is resampled: groups instead of points where points depend on each other and the groups are enough."""
    found = dependence_of(points)
    return "clusters" if asked == "points" and found.found and found.num_groups >= LEAST_CLUSTERS else asked


def drop_undecayed(points: Sequence[Point], excluded: list[Exclusion]) -> list[Point]:
    """Leave out checkpoints of runs whose learning rate was to decay further: only the last of a run is a point.

    Where the column of schedules says cosine or linear, an earlier checkpoint is a run of as many tokens that was
    stopped at a high learning rate; its loss lies above that of a run planned for those tokens (Hoffmann et al. 2022,
    figure A1).
    """
    gone: dict[int, str] = {}
    for group in _checkpoints(points):
        decays = [k for k in group if (points[k].schedule or "").lower().startswith(DECAYING)]
        if not decays:
            continue
        for k in decays:
            last = max(points[j].num_tokens for j in group if points[j].num_params == points[k].num_params)
            if points[k].num_tokens < last * (1.0 - 1e-6):
                gone[k] = (
                    f"a checkpoint at {points[k].num_tokens:.3g} of {last:.3g} tokens of its run under "
                    f"{points[k].schedule} decay: its learning rate had not decayed, so its loss is none of a run of "
                    "that length"
                )
    for k, reason in gone.items():
        excluded.append(Exclusion(points[k].row, points[k].label or points[k].run_id, reason))
    return [point for k, point in enumerate(points) if k not in gone]


def point_weights(points: Sequence[Point], noise: float) -> FloatArray | None:
    """Weights of the points, of mean 1, from their evaluation errors and the spread of their seeds; None where alike.

    A point's variance of ln L is that of its run, and that of its evaluation. The run's is the law's scatter `noise`
    without the mean evaluation error, or where seeds tell, the variance among the seeds of its size, drawn to that of
    all sizes.
    """
    of_seeds = _seed_variances(points)
    errors = np.array([(p.loss_standard_error or 0.0) / p.loss for p in points]) ** 2
    mean = float(errors.mean())
    if mean > _MOST_OF_NOISE * noise**2:  # the runs share their held-out set, and part of its error
        errors *= _MOST_OF_NOISE * noise**2 / mean
    of_run = np.full(len(points), noise**2 - float(errors.mean())) if of_seeds is None else of_seeds
    total = of_run + errors
    if float(total.max()) < _UNLIKE * float(total.min()) or total.min() <= 0.0:
        return None
    weights = 1.0 / total
    return weights * (len(weights) / weights.sum())


def _seed_variances(points: Sequence[Point]) -> FloatArray | None:
    """Variance of ln L among seeds at each point, drawn to the pooled one; None with too few seeds to tell."""
    groups = _seeds(points)
    spare = sum(len(group) - 1 for group in groups)
    if spare < _SEED_DOF:
        return None
    log_loss = np.log([point.loss for point in points])
    squares = [float(((log_loss[group] - log_loss[group].mean()) ** 2).sum()) for group in groups]
    pooled = sum(squares) / spare
    variances = np.full(len(points), pooled)
    for group, square in zip(groups, squares, strict=True):
        variances[group] = (_SHRINK * pooled + square) / (_SHRINK + len(group) - 1)
    return variances
