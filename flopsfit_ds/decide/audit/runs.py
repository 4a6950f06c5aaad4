"""Checks of the runs: how they were counted, tuned, repeated and measured, as far as a table can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flopsfit_ds.base.units import format_count
from flopsfit_ds.decide.audit.view import AuditView, Check, failed, name_of, passed, unknown
from flopsfit_ds.fit.checks.counting import counting_drift, six_throughout
from flopsfit_ds.fit.checks.design import learning_rate_edges, unlike_batches
from flopsfit_ds.fit.points.columns import normalise
from flopsfit_ds.fit.points.dependence import LEAST_CLUSTERS, dependence_of
from flopsfit_ds.fit.points.points import Point

SMALL = 3e8
"""Below it embeddings and the head are a fifth and more of all parameters, at vocabularies of 32k to 128k."""
MUCH_REPEATED = 4.0
"""Muennighoff et al. 2023: up to four epochs data is worth almost what fresh data is."""
_NAMED_ROWS = 4  # of a budget


def run_checks(view: AuditView) -> Iterator[Check]:
    """Embeddings, tuning, batches, schedule, repeats, repeated data, dependence, error of the evaluation."""
    yield _embeddings(view)
    yield _tuning(view)
    yield _batches(view)
    yield _schedule(view)
    yield _repeats(view)
    yield _data(view)
    yield _dependence(view)
    yield _evaluation(view)


def _embeddings(view: AuditView) -> Check:
    title = "Embeddings counted alike in N and C"
    arrays = view.arrays
    smallest = float(arrays.num_params.min())
    if view.parameters is not None:
        found = f"N counts the {view.parameters} parameters and C every operation, as planned"
        return passed("embeddings", title, found)
    counts = "without embeddings" if _says(view, "num_params", "non_embedding", "nonembedding") else None
    counts = "with embeddings" if counts is None and _says(view, "num_params", "total") else counts
    if six_throughout(arrays):
        found = f"C is 6 N D throughout; sizes from {format_count(smallest)}"
        if counts is not None:
            return passed("embeddings", title, f"{found}; its column says {counts}")
        if smallest >= SMALL:
            return passed("embeddings", title, f"{found}: too large for embeddings to weigh")
        remedy = "say in the column's name whether N counts embeddings, and give C as counted: exponents hang on it"
        return unknown("embeddings", title, found, remedy)
    drift = counting_drift(arrays)
    found = f"C/(N D) runs from {drift.smallest:.3g} at {format_count(smallest)} to {drift.largest:.3g} at the largest"
    if drift.counts == "alike":
        return passed("embeddings", title, found)
    remedies = {
        "more in C": "C counts more than N at small sizes, as where N leaves the head out: count all",
        "more in N": "N counts more than C at small sizes, as look-up tables do: leave them out of N",
        "unclear": "size alone does not explain it: say how C was counted, and count the same parameters in N",
    }
    judged = unknown if drift.counts == "unclear" else failed
    return judged("embeddings", title, found, remedies[drift.counts])


def _says(view: AuditView, quantity: str, *words: str) -> bool:
    column = view.columns.get(quantity, "")
    spelt = normalise(column.replace("(", " ").replace(")", " "))
    return any(word in spelt for word in words)


def _tuning(view: AuditView) -> Check:
    title = "Learning rates tuned at each size"
    found = learning_rate_edges(view.everyone)
    if found.tried:
        told = (
            f"several learning rates at {found.tried} places, the best at the edge of the range at {found.best_at_edge}"
        )
        if not found.best_at_edge:
            return passed("tuning", title, told)
        rows = ", ".join(f"row {row}" for row in found.rows_at_edge[:6])
        return failed("tuning", title, told, f"widen the range there ({rows}): those losses may be too high")
    rates = {p.learning_rate for p in view.points if p.learning_rate is not None}
    sizes = view.arrays.num_params
    span = float(sizes.max() / sizes.min())
    remedy = "train three learning rates a factor of two apart at the smallest and a middle size, and give their column"
    if not rates:
        return unknown("tuning", title, "no learning rates are given", remedy)
    if len(rates) == 1 and span > 10:
        told = f"one learning rate, {next(iter(rates)):.3g}, for sizes a factor of {span:.3g} apart: no size was tuned"
        return failed("tuning", title, told, remedy)
    return unknown(
        "tuning", title, f"{len(rates)} learning rates, one at each place: nothing says they are best", remedy
    )


def _batches(view: AuditView) -> Check:
    title = "One batch within a budget"
    if set(view.kinds) == {"sweep"}:
        return passed("batches", title, "a sweep plans one batch for all runs of a budget")
    known = [point for point in view.points if point.global_batch is not None]
    remedy = "train all runs of a budget in one batch, or tune batch and learning rate at each size"
    if not known:
        return unknown("batches", title, "no batches are given", "give a column global_batch")
    found = unlike_batches(view.everyone)
    if not found:
        ends = [f(point.global_batch or 0.0 for point in known) for f in (min, max)]
        span = f"{ends[0]:,.6g}" if ends[0] == ends[1] else f"{ends[0]:,.6g} to {ends[1]:,.6g}"
        of_all = "" if len(known) == len(view.points) else f" where they are given, of {len(known)} runs"
        return passed("batches", title, f"batches of {span}, alike within each budget{of_all}")
    rows = ", ".join(f"row {row}" for each in found for row in each.rows[:_NAMED_ROWS])
    return failed("batches", title, "; ".join(each.in_words for each in found), f"{remedy} ({rows})")


def _schedule(view: AuditView) -> Check:
    title = "Each run decayed to its own end"
    if set(view.kinds) == {"sweep"}:
        return passed("schedule", title, "every run of a sweep has a schedule as long as its tokens")
    return unknown(
        "schedule",
        title,
        "a table does not say whether a loss was measured at the end of its own schedule",
        "leave out checkpoints taken within a decay: their losses are too high (Hoffmann et al. 2022, appendix B)",
    )


def _places(view: AuditView) -> list[list[Point]]:
    places: dict[tuple[float, float], list[Point]] = {}
    for point in view.points:
        key = round(math.log(point.num_params), 4), round(math.log(point.num_tokens), 3)
        places.setdefault(key, []).append(point)
    return [members for members in places.values() if len(members) > 1]


def _repeats(view: AuditView) -> Check:
    title = "Runs repeated with other seeds"
    repeated = _places(view)
    remedy = "train one place three times with other seeds: what differs by chance cannot be known otherwise"
    copies = sum(len(m) - len({p.loss for p in m}) for m in repeated)
    if copies:
        told = f"{copies} rows repeat another exactly"
        return failed("repeats", title, told, "remove copies: each counts as a run and narrows the intervals")
    if not repeated:
        return unknown("repeats", title, "no place was trained twice", remedy)
    spare = sum(len(m) - 1 for m in repeated)
    squares = sum(float(np.var(np.log([p.loss for p in m])) * len(m)) for m in repeated)
    noise = math.sqrt(squares / spare)
    told = f"{len(repeated)} places were trained again: ln L differs by {noise:.2%} (standard deviation)"
    if not isinstance(view.fitted, str):
        told += f", runs by {view.fitted.noise:.2%} about the law"
    return passed("repeats", title, told)


def _data(view: AuditView) -> Check:
    title = "Data fresh, or its repeats counted"
    ratios = [p.most_repeats or p.num_tokens / p.unique_tokens for p in view.points if p.unique_tokens]
    if not ratios:
        remedy = "give the unique tokens in a column of that name: repeated data is worth less than fresh data"
        return unknown("data", title, "unique tokens are not given", remedy)
    mixed = any(p.most_repeats for p in view.points)
    found = f"at most {max(ratios):.3g} passes over {'a source of the mixture' if mixed else 'the data'}"
    if max(ratios) <= MUCH_REPEATED:
        return passed("data", title, found)
    return failed(
        "data", title, found, "fit the data-constrained law (--law data-constrained), or leave those runs out"
    )


def _dependence(view: AuditView) -> Check:
    title = "Each row a run of its own"
    ids = [p.run_id for p in view.everyone if p.run_id is not None]
    together = dependence_of(view.everyone)
    if not ids and not together.found:
        remedy = "give a column run_id: rows of one run share their errors, and intervals are too narrow without it"
        return unknown("dependence", title, "no run ids are given", remedy)
    of_ids = (f"{len(ids)} rows of {len(set(ids))} runs",) if ids else ()
    found = "; ".join((*of_ids, *together.found))
    if together.of_one_run or len(set(ids)) < len(ids):
        remedy = "keep final losses only; what a fit finds to depend it resamples together"
        return failed("dependence", title, found, remedy)
    if together.found and together.num_groups < LEAST_CLUSTERS:
        remedy = f"train more runs of their own: {LEAST_CLUSTERS} groups are the least that are resampled"
        return failed("dependence", title, found, remedy)
    return passed("dependence", title, found)


def _evaluation(view: AuditView) -> Check:
    title = "Held-out losses measured well enough"
    errors = [(p.loss_standard_error / p.loss, p) for p in view.points if p.loss_standard_error is not None]
    remedy = "evaluate on more held-out tokens, and give a column loss_standard_error"
    if not errors:
        return unknown("evaluation", title, "standard errors of the losses are not given", remedy)
    worst, point = max(errors, key=lambda pair: pair[0])
    found = f"standard errors up to {worst:.2%} of the loss ({name_of(point)})"
    if not isinstance(view.fitted, str):
        noise = view.fitted.noise
        found += f", where runs scatter by {noise:.2%} about the law"
        if worst > noise:
            return failed("evaluation", title, found, remedy)
    return passed("evaluation", title, found)
