"""Choose runs greedily: at each step the one that lowers the errors at the target most for each GPU-second it costs.

The fall is that of ln of the variances of ln N*, ln D* and ln L* together, so that no unit decides. A run takes one or
more GPUs; runs are added only while all still end within the budget, side by side on the slots.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.choosing.belief import TUNING_NOISE, Belief, Place
from flopsfit_ds.fit.forecast.prediction import PredictionModel
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.scaling import fit_scaling_law
from flopsfit_ds.spec.fit_options import TARGET_FACTOR

Purpose = Literal["law", "tuning"]
TUNING_RUNS = 2
"""A learning rate half and one twice as large, beside the run that is there."""
MOST_RUNS = 24
"""Chosen: each run that is picked costs a look at all candidates, and the first tell most."""
_PRICES = (1.0, 3.0, 10.0)
"""Of a place in the batch, in even shares of what is left: greedy choices are short-sighted, so the best of several is
taken. A low price takes many cheap runs, a high one those that tell most whatever they cost."""
_SIZES, _BUDGETS = 36, 28
_HALF_WIDTH = math.log(5.0)
"""Sizes up to fivefold off the optimum on either side: published grids span a factor of 16 to 30."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that could be trained.

    Attributes:
        place: Where they are.
        gpu_seconds: (runs,) cost of each.
        purpose: (runs,) "law" or "tuning".
    """

    place: Place
    gpu_seconds: FloatArray
    purpose: np.ndarray

    def where(self, kept: np.ndarray) -> Candidates:
        """Those of a mask."""
        place = Place(*(column[kept] for column in _columns(self.place)))
        return Candidates(place, self.gpu_seconds[kept], self.purpose[kept])


@dataclass(frozen=True)
class Errors:
    """Standard errors at the target, as the belief has them.

    Attributes:
        log_num_params: Of ln N*.
        log_num_tokens: Of ln D*.
        log_loss: Of ln L*.
    """

    log_num_params: float
    log_num_tokens: float
    log_loss: float


@dataclass(frozen=True)
class Chosen:
    """One run to train.

    Attributes:
        purpose: "law", or "tuning": other learning rates at a place, which say whether its loss can be trusted.
        num_params: Its size.
        num_tokens: Its tokens.
        compute: FLOPs.
        gpu_seconds: Its cost, all tries of a tuning run together.
        gpus: How many it takes side by side.
        start_seconds: When it starts, counted from the start of the batch.
        after: Errors at the target once it is there, with all before it.
    """

    purpose: Purpose
    num_params: float
    num_tokens: float
    compute: float
    gpu_seconds: float
    gpus: int
    start_seconds: float
    after: Errors


@dataclass(frozen=True)
class NextRuns:
    """A batch of runs.

    Attributes:
        target_compute: FLOPs of the run that is to be planned.
        num_params: N* there as it is believed now.
        num_tokens: D* there.
        loss: L* there.
        before: Errors there now.
        after: Errors there with the whole batch.
        runs: In the order in which they were chosen.
        gpu_seconds: Of all runs together.
        wall_seconds: From the start of the batch to its last end.
        gpus: GPUs in all.
        num_candidates: Runs that were looked at.
    """

    target_compute: float
    num_params: float
    num_tokens: float
    loss: float
    before: Errors
    after: Errors
    runs: tuple[Chosen, ...]
    gpu_seconds: float
    wall_seconds: float
    gpus: int
    num_candidates: int

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def choose_next(
    points: Sequence[Point],
    gpu_seconds: float,
    flops_per_second: float,
    *,
    target_compute: float | None = None,
    gpus: int = 1,
    candidates: Candidates | None = None,
    most_runs: int = MOST_RUNS,
    can_train: Callable[[Place], np.ndarray] | None = None,
    model: PredictionModel | None = None,
    sizes: Sequence[float] | None = None,
) -> NextRuns:
    """The runs that tell most of the optimum at the target for a budget of GPU-seconds.

    Args:
        points: Runs that were trained; they must carry a law.
        gpu_seconds: What may be spent.
        flops_per_second: That one GPU does in training.
        target_compute: FLOPs of the run to plan; ten times the largest run without it.
        gpus: GPUs side by side.
        candidates: Runs to choose from; about the optima of the law, of rising compute, without it.
        most_runs: Of one batch.
        can_train: Which places can be trained at all, (runs,) of booleans; without it, all.
        model: Of a fit of these points, which then are not fitted again.
        sizes: Parameters that models can have, rising; without it, any.

    Raises:
        FitError: The runs carry no law, no candidate fits in the budget, or an option is off.
    """
    for name, value in (("GPU time", gpu_seconds), ("FLOP/s", flops_per_second), ("GPUs", gpus)):
        if not 0 < value < math.inf:
            raise FitError(f"{name} must be positive and finite, got {value:g}")
    affordable = gpu_seconds * flops_per_second
    belief, target = _belief(points, target_compute, affordable, model)
    pool = candidates or usual_candidates(belief, points, affordable, flops_per_second, sizes)
    if can_train is not None:
        pool = pool.where(can_train(pool.place) | (pool.purpose == "tuning"))
    centre, goal = belief.of_target(math.log(target))
    ways = [_pick(belief, pool, goal, gpu_seconds / gpus, gpus, most_runs, price) for price in _PRICES]
    picked, posterior = min(ways, key=lambda way: float(np.log(way[1][-1]).sum()))
    if not picked:
        least = float(pool.gpu_seconds.min(initial=math.inf))
        raise FitError(
            f"no run fits into {gpu_seconds / 3600:.3g} GPU-hours on {gpus} GPUs: the cheapest takes {least / 3600:.3g}"
        )
    start = {index: begin for index, begin, _ in _schedule([p[:2] for p in picked], gpus)}
    runs = tuple(
        Chosen(
            purpose="tuning" if pool.purpose[k] == "tuning" else "law",
            num_params=math.exp(pool.place.log_n[k]),
            num_tokens=math.exp(pool.place.log_d[k]),
            compute=math.exp(pool.place.log_c[k]),
            gpu_seconds=float(pool.gpu_seconds[k]),
            gpus=width,
            start_seconds=start[number],
            after=_errors(after),
        )
        for number, (k, width, after) in enumerate(
            (k, width, after) for (seconds, width, k), after in zip(picked, posterior[1:], strict=True)
        )
    )
    ends = [end for _, _, end in _schedule([p[:2] for p in picked], gpus)]
    n, d, loss = (math.exp(value) for value in centre)
    return NextRuns(
        target_compute=target,
        num_params=n,
        num_tokens=d,
        loss=loss,
        before=_errors(posterior[0]),
        after=_errors(posterior[-1]),
        runs=runs,
        gpu_seconds=sum(run.gpu_seconds for run in runs),
        wall_seconds=max(ends),
        gpus=gpus,
        num_candidates=len(pool.gpu_seconds),
    )


def errors_now(points: Sequence[Point], target_compute: float | None = None) -> Errors:
    """The errors at the target with the runs that there are, as `choose_next` has them before its batch.

    Raises:
        FitError: The runs carry no law.
    """
    belief, target = _belief(points, target_compute, 0.0)
    _, goal = belief.of_target(math.log(target))
    return _errors((goal**2).sum(axis=1))


def _belief(
    points: Sequence[Point], target_compute: float | None, affordable: float, model: PredictionModel | None = None
) -> tuple[Belief, float]:
    """What is believed, and the target; runs count in full from the largest that can be paid for upwards."""
    model = model or fit_scaling_law(points, bootstrap_samples=0, diagnostics=False).prediction
    target = target_compute or TARGET_FACTOR * model.largest_compute
    reference = math.log(min(target, max(model.largest_compute, affordable)))
    return Belief.of(model, points, reference, math.log(target)), target


def usual_candidates(
    belief: Belief,
    points: Sequence[Point],
    affordable_flops: float,
    flops_per_second: float,
    sizes: Sequence[float] | None = None,
) -> Candidates:
    """About 1,000 sizes and budgets around the optima that are believed, and tuning runs at the sizes of the points."""
    can_be = None if sizes is None else np.log(np.asarray(sizes, dtype=float))
    seen = Place.of(points)
    low, high = float(seen.log_c.min()), math.log(affordable_flops)
    high = max(high, low + 1e-9)
    budgets = np.linspace(low, high, _BUDGETS)
    log_n, log_c = [], []
    for budget in budgets:
        (centre, *_), _ = belief.of_target(float(budget))
        around = centre + np.linspace(-_HALF_WIDTH, _HALF_WIDTH, _SIZES)
        if can_be is not None:
            near = can_be[np.abs(can_be - centre) <= _HALF_WIDTH]
            around = np.unique(near[np.abs(near[:, None] - around).argmin(axis=0)]) if len(near) else near
        log_n.append(around)
        log_c.append(np.full(len(around), budget))
    n, c = np.concatenate(log_n), np.concatenate(log_c)
    law = Place(n, belief.rule.log_tokens(c, n), c)
    cheap = np.argsort(seen.log_c)[: max(1, len(points) // 2)]
    place = Place(*(np.concatenate([a, b[cheap]]) for a, b in zip(_columns(law), _columns(seen), strict=True)))
    purpose = np.array(["law"] * len(n) + ["tuning"] * len(cheap))
    seconds = np.exp(place.log_c) / flops_per_second * np.where(purpose == "tuning", TUNING_RUNS, 1)
    return Candidates(place, seconds, purpose)


def _columns(place: Place) -> tuple[FloatArray, FloatArray, FloatArray]:
    return place.log_n, place.log_d, place.log_c


_Pick = tuple[float, int, int]
"""GPU-seconds, GPUs, index of the candidate."""


def _pick(
    belief: Belief, pool: Candidates, goal: FloatArray, wall: float, gpus: int, most: int, price: float
) -> tuple[list[_Pick], list[FloatArray]]:
    """Greedy choice under the makespan; the variances at the target before it and after each run."""
    tuning = pool.purpose == "tuning"
    directions = np.where(tuning[:, None], belief.of_tuning(pool.place), belief.of_runs(pool.place))
    noise = np.where(tuning, TUNING_NOISE * belief.noise, belief.noise_of(pool.place)) ** 2
    known = np.eye(directions.shape[1])
    open_ = pool.gpu_seconds <= wall * gpus
    widths = _widths(pool.gpu_seconds, wall, gpus)
    picked: list[_Pick] = []
    variances = [np.einsum("qi,ij,qj->q", goal, known, goal)]
    while len(picked) < most and open_.any():
        spread = directions @ known
        total = (spread * directions).sum(axis=1) + noise
        fall = (goal @ spread.T) ** 2 / total
        left = np.maximum(variances[-1][:, None] - fall, 1e-12 * variances[-1][:, None])
        gain = np.log(variances[-1][:, None] / left).sum(axis=0)
        left_over = max(0.0, wall * gpus - sum(seconds for seconds, _, _ in picked))
        each = price * left_over / (most - len(picked))
        order = np.argsort(np.where(open_, -gain / (pool.gpu_seconds + each), np.inf), kind="stable")
        best = _first_that_fits(order[: int(open_.sum())], pool, widths, picked, wall, gpus)
        if best is None:
            break
        picked.append((float(pool.gpu_seconds[best]), int(widths[best]), best))
        known = known - np.outer(spread[best], spread[best]) / total[best]
        variances.append(np.maximum(np.einsum("qi,ij,qj->q", goal, known, goal), 1e-300))
        open_[best] = False
    return picked, variances


def _widths(seconds: FloatArray, wall: float, gpus: int) -> np.ndarray:
    """GPUs of each run: the fewest, a power of two, with which it ends within half of the wall time."""
    wanted = np.maximum(1.0, 2.0 * seconds / wall)
    return np.minimum(gpus, 2 ** np.ceil(np.log2(wanted)).astype(int))


def _first_that_fits(
    order: np.ndarray, pool: Candidates, widths: np.ndarray, picked: Sequence[_Pick], wall: float, gpus: int
) -> int | None:
    """The best candidate with which all runs still end in time; the first few are tried, then ever cheaper ones."""
    for k in order[:200]:
        trial = [*((s, w) for s, w, _ in picked), (float(pool.gpu_seconds[k]), int(widths[k]))]
        spent = sum(s for s, _ in trial)
        if spent <= wall * gpus and max(end for _, _, end in _schedule(trial, gpus)) <= wall * (1 + 1e-9):
            return int(k)
    return None


def _schedule(runs: Sequence[tuple[float, int]], gpus: int) -> list[tuple[int, float, float]]:
    """(run, start, end) with the longest first, each on the GPUs that are free soonest."""
    order = sorted(range(len(runs)), key=lambda k: -runs[k][0] / runs[k][1])
    free = [0.0] * gpus
    heapq.heapify(free)
    found: list[tuple[int, float, float]] = []
    for k in order:
        seconds, width = runs[k]
        taken = [heapq.heappop(free) for _ in range(width)]
        begin, end = taken[-1], taken[-1] + seconds / width
        for _ in range(width):
            heapq.heappush(free, end)
        found.append((k, begin, end))
    return found


def _errors(variances: FloatArray) -> Errors:
    n, d, loss = (math.sqrt(max(0.0, float(value))) for value in variances)
    return Errors(n, d, loss)
