"""Which points to train: sizes and tokens by isoFLOP budgets, by a ladder, or as listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.data.corpus import Corpus, Drawn
from flopsfit_ds.plan.recorded.chosen import ChosenRun
from flopsfit_ds.spec import AdaptiveDesign, IsoflopDesign, LadderDesign, PointsDesign
from flopsfit_ds.spec.training import SeedsAt

TOKEN_TOLERANCE = 0.005
"""A run's realised FLOPs (or tokens) lie within this share of what the design asks for."""
_NEAR_SIZE = 0.3
"""Of 60 sizes from 10 M to 100 B parameters the built-in decoder, as it is by default, has half within .6% and all
within 7.5%, toys of some thousands within 25%; with eight query heads of 128 a key head and a vocabulary of 128k, asked
for 1 B it has 1.47 B."""
_SIZES_NAMED = 3
_MIN_STEPS = 20
"""Below it the loop never smooths its loss, and sees no divergence (`train.loop._SMOOTHING_STEPS`)."""
_WORTH_NEW = 4.0
"""Times that data may be seen and is about as good as new (Muennighoff et al. 2023, arXiv:2305.16264)."""
_WORN_OUT = ", and beyond 4 each is worth less; fit.law: data-constrained knows that"
_FINE_BATCHES = 8
"""Sequences: up to here a rule's batch is any whole number."""


class SizedModel(Protocol):
    """What a design needs to know of a model of some size."""

    @property
    def num_params(self) -> int:
        """All parameters."""
        ...

    @property
    def num_params_of_design(self) -> int:
        """What the design's sizes and tokens per parameter mean: all parameters, or the active ones."""
        ...

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs a token."""
        ...


ModelT = TypeVar("ModelT", bound=SizedModel)
Nearest = Callable[[float, Container[int]], ModelT]


@dataclass(frozen=True)
class DesignedPoint(Generic[ModelT]):
    """One point of a design, before it is rounded to whole batches.

    Attributes:
        model: Its size.
        num_tokens: Training tokens aimed at.
        compute_budget_flops: The isoFLOP budget it belongs to; None for other designs.
        asked_params: The size that the design asks for; None where it asks for none.
    """

    model: ModelT
    num_tokens: float
    compute_budget_flops: float | None
    asked_params: float | None = None


@dataclass(frozen=True)
class BatchPlan:
    """Whole batches for a number of tokens.

    Attributes:
        num_steps: Optimiser steps.
        global_batch_sequences: Sequences a step.
        num_tokens: Tokens of all steps.
        made_smaller: The batch is smaller than the spec's, to meet the budget.
    """

    num_steps: int
    global_batch_sequences: int
    num_tokens: int
    made_smaller: bool


def design_points(
    design: IsoflopDesign | LadderDesign | PointsDesign | AdaptiveDesign,
    nearest: Nearest[ModelT],
    chosen: Sequence[ChosenRun] = (),
) -> list[DesignedPoint[ModelT]]:
    """Sizes and tokens of every point.

    Args:
        design: The spec's section.
        nearest: The model of the family that comes nearest to a number of parameters, leaving out sizes taken.
        chosen: Runs that an adaptive design chose after its first batch.

    Raises:
        PlanError: The family has no model of a size asked for.
    """
    if isinstance(design, (IsoflopDesign, AdaptiveDesign)):
        first = [point for budget in design.compute_budgets for point in _isoflop_points(design, budget, nearest)]
        models = [(nearest(run.num_params, ()), run.compute) for run in chosen if run.purpose == "law"]
        return first + [DesignedPoint(model, compute / model.flops_per_token, None) for model, compute in models]
    points = []
    if isinstance(design, LadderDesign):
        for size in design.num_params:
            model = nearest(size, ())
            counted = model.num_params_of_design
            points += [DesignedPoint(model, counted * ratio, None, size) for ratio in design.tokens_per_parameter]
        return points
    for entry in design.points:
        model = nearest(entry.num_params, ())
        if entry.num_tokens is not None:
            points.append(DesignedPoint(model, entry.num_tokens, None, entry.num_params))
        else:
            assert entry.compute is not None
            tokens = entry.compute / model.flops_per_token
            points.append(DesignedPoint(model, tokens, entry.compute, entry.num_params))
    return points


def _isoflop_points(
    design: IsoflopDesign | AdaptiveDesign, budget: float, nearest: Nearest[ModelT]
) -> list[DesignedPoint[ModelT]]:
    growth = (budget / design.compute_budgets[0]) ** design.tokens_per_parameter_exponent
    centre = _expected_optimum(budget, design.tokens_per_parameter * growth, nearest)
    count = design.sizes_per_budget
    offsets = [0.0] if count == 1 else [index / (count - 1) - 0.5 for index in range(count)]
    models: dict[int, ModelT] = {}
    for offset in offsets:
        try:
            model = nearest(centre * design.size_span**offset, models.keys())
        except PlanError as error:
            sizes = ", ".join(format_count(size) for size in models)
            raise PlanError(
                f"design: {count} different sizes within a factor of {design.size_span:g} are not to be had around the "
                f"expected optimum of {format_flops(budget)} FLOPs, {format_count(centre)} parameters (found: "
                f"{sizes or 'none'}): {error}; or change design.size_span or design.sizes_per_budget"
            ) from None
        models[model.num_params] = model
    return [DesignedPoint(models[size], budget / models[size].flops_per_token, budget) for size in sorted(models)]


def _expected_optimum(budget: float, tokens_per_parameter: float, nearest: Nearest[ModelT]) -> float:
    """Parameters N for which N * tokens_per_parameter tokens cost the budget, FLOPs a token taken from the family."""
    num_params = math.sqrt(budget / (6 * tokens_per_parameter))
    for _ in range(20):
        model = nearest(num_params, ())
        flops_per_parameter_token = model.flops_per_token / model.num_params_of_design
        refined = math.sqrt(budget / (flops_per_parameter_token * tokens_per_parameter))
        if abs(math.log(refined / num_params)) < 1e-3:
            break
        num_params = math.sqrt(refined * num_params)
    return num_params


@dataclass(frozen=True)
class BatchWords:
    """What the user calls the things that a batch is made of, for messages.

    Attributes:
        batch: Where the size of a global batch is written.
        finer: What to do where whole sequences are too coarse for a number of tokens.
    """

    batch: str
    finer: str


SPEC_WORDS = BatchWords("training.global_batch_tokens", "shorten model.context_length")


def _smaller_by_rule(sequences: int) -> int:
    """The largest smaller of 4, 5, 6 or 7 times a power of two: near to what a rule says, and shared by many GPUs."""
    if sequences <= _FINE_BATCHES:
        return sequences - 1
    grain = 2 ** (sequences.bit_length() - 3)
    return (sequences - 1) // grain * grain


def _round_batch(sequences: float) -> int:
    """The nearest of those numbers to what a rule says."""
    least = max(1, int(sequences))
    grain = 1 if least <= _FINE_BATCHES else 2 ** (least.bit_length() - 3)
    return max(1, round(sequences / grain) * grain)


def plan_batches(
    num_tokens: Sequence[float],
    context_length: int,
    global_batch_tokens: float,
    words: BatchWords = SPEC_WORDS,
    *,
    by_rule: bool = False,
) -> list[BatchPlan]:
    """Round numbers of tokens to whole global batches of one size, each within `TOKEN_TOLERANCE`.

    Where the spec's batch is too coarse for one of them, the batch of all is halved until the tokens of each are met:
    at one learning rate, batches that differ would shift the losses of one budget against each other. A rule's batch,
    which is seldom a number that GPUs can share, is rounded to an eighth of itself, and made smaller by as little.

    Raises:
        PlanError: Some tokens do not fill a single batch, or no batch meets them.
    """
    exact = global_batch_tokens / context_length
    asked = _round_batch(exact) if by_rule else max(1, round(exact))
    fewest = min(num_tokens)
    if fewest < asked * context_length * (1 - TOKEN_TOLERANCE):
        raise PlanError(
            f"{format_count(fewest)} tokens are less than one global batch of "
            f"{format_count(asked * context_length)}; raise the budget, or lower {words.batch}"
        )
    sequences = asked
    while True:
        plans = []
        for wanted in num_tokens:
            steps = max(1, round(wanted / (sequences * context_length)))
            tokens = steps * sequences * context_length
            if abs(tokens / wanted - 1) > TOKEN_TOLERANCE:
                break
            plans.append(BatchPlan(steps, sequences, tokens, sequences < asked))
        if len(plans) == len(num_tokens):
            return plans
        if sequences == 1:
            raise PlanError(
                f"{format_count(num_tokens[len(plans)])} tokens cannot be met within {TOKEN_TOLERANCE:.1%} by whole "
                f"sequences of {context_length} tokens; raise the budget or {words.finer}"
            )
        halved = sequences // 2 if sequences % 2 == 0 else sequences - 1
        sequences = _smaller_by_rule(sequences) if by_rule else halved


def plan_points(
    points: Sequence[DesignedPoint[ModelT]],
    context_length: int,
    global_batch_tokens: Callable[[Sequence[DesignedPoint[ModelT]]], float],
    *,
    words: BatchWords = SPEC_WORDS,
    one_batch: bool = False,
    by_rule: bool = False,
) -> list[BatchPlan]:
    """Whole batches of every point: of one size within a budget, or with `one_batch` over all points.

    Args:
        points: Of the design.
        context_length: Tokens a sequence.
        global_batch_tokens: What is asked for, of points that share a batch.
        words: For messages.
        one_batch: Whether all points share one.
        by_rule: Whether it follows a rule, and may be rounded.

    Raises:
        PlanError: Some tokens do not fill a single batch, or no batch meets them.
    """
    groups: dict[object, list[int]] = {}
    for number, point in enumerate(points):
        alone = point.compute_budget_flops is None
        key = "all" if one_batch else ("point", number) if alone else point.compute_budget_flops
        groups.setdefault(key, []).append(number)
    plans: dict[int, BatchPlan] = {}
    for numbers in groups.values():
        group = [points[number] for number in numbers]
        wanted, asked = [point.num_tokens for point in group], global_batch_tokens(group)
        plans |= zip(numbers, plan_batches(wanted, context_length, asked, words, by_rule=by_rule), strict=True)
    return [plans[number] for number in range(len(points))]


def seeds_of_points(
    points: Sequence[DesignedPoint[ModelT]], seeds: tuple[int, ...], seeds_at: SeedsAt
) -> list[tuple[int, ...]]:
    """The seeds of every point: all of them where they are asked for, else the first."""
    if seeds_at == "all":
        return [seeds] * len(points)
    groups: dict[tuple[bool, float], list[int]] = {}
    for number, point in enumerate(points):
        budget = point.compute_budget_flops
        key = (False, float(point.model.num_params)) if budget is None else (True, budget)
        groups.setdefault(key, []).append(number)
    if seeds_at == "smallest":
        chosen = set(groups[min(groups)])
    else:
        ranked = (
            sorted(group, key=lambda each: (points[each].model.num_params, points[each].num_tokens))
            for group in groups.values()
        )
        chosen = {group[len(group) // 2] if points[group[0]].compute_budget_flops else group[0] for group in ranked}
    return [seeds if number in chosen else seeds[:1] for number in range(len(points))]


def batch_warnings(runs: Sequence[tuple[str, float | None, BatchPlan]], corpus: Corpus, words: BatchWords) -> list[str]:
    """What the user should know of the runs' batches and of how often they see their data, a line for each kind.

    Args:
        runs: Of each its label, the FLOPs of its isoFLOP budget (None for other designs), and its steps and tokens.
        corpus: The data.
        words: For messages.
    """
    repeating: dict[str, list[tuple[str, Drawn]]] = {}
    for label, _, batches in runs:
        for drawn in corpus.drawn(batches.num_tokens):
            if drawn.repeats is not None and drawn.repeats > 1:
                repeating.setdefault(drawn.source, []).append((label, drawn))
    found = [_repeats_warning(each) for each in repeating.values()]
    for label, budget, batches in runs:
        if batches.made_smaller:
            head = f"{format_flops(budget)} FLOPs: a" if budget else f"{label}: a"
            found.append(
                f"{head} global batch of {batches.global_batch_sequences} sequences instead of {words.batch}, so that "
                f"{'every point has one batch and meets the budget' if budget else 'its tokens are met'}"
            )
    short = [(batches.num_steps, label) for label, _, batches in runs if batches.num_steps < _MIN_STEPS]
    if short:
        fewest, label = min(short)
        others = f", and {_counted(len(short) - 1)} fewer than {_MIN_STEPS}" if len(short) > 1 else ""
        found.append(f"{label}: only {fewest} optimiser steps{others}; a smaller {words.batch} gives more")
    return list(dict.fromkeys(found))


def size_warnings(points: Sequence[DesignedPoint[ModelT]]) -> list[str]:
    """One line for the sizes of a design that the family does not come near to; none where it does."""
    found: dict[float, int] = {}
    for point in points:
        counted = point.model.num_params_of_design
        if point.asked_params is not None and abs(math.log(counted / point.asked_params)) > math.log1p(_NEAR_SIZE):
            found[point.asked_params] = counted
    if not found:
        return []
    told = [
        f"{format_count(asked)} parameters are asked for, and the nearest model has {format_count(counted)} "
        f"({counted / asked - 1:+.0%})"
        for asked, counted in sorted(found.items())
    ]
    more = f"; and {len(told) - _SIZES_NAMED} more such sizes" if len(told) > _SIZES_NAMED else ""
    return [
        f"design: {'; '.join(told[:_SIZES_NAMED])}{more}: sizes of this family come in coarse steps; ask for sizes "
        "that it has, or change the head, the vocabulary or the multiple that sets its steps"
    ]


def _repeats_warning(repeating: Sequence[tuple[str, Drawn]]) -> str:
    """One line for all runs that see a source's tokens more than once: how often the most does."""
    label, drawn = max(repeating, key=lambda each: each[1].repeats or 0.0)
    of_source = f" of {drawn.source}" if drawn.source else ""
    others = f" (and in {_counted(len(repeating) - 1)}, too)" if len(repeating) > 1 else ""
    assert drawn.repeats is not None
    assert drawn.unique_tokens is not None
    return (
        f"{label}: trains on {format_count(drawn.num_tokens)} tokens{of_source} of "
        f"{format_count(drawn.unique_tokens)} unique ones: the data repeats {drawn.repeats:.1f} times{others}"
        f"{_WORN_OUT if drawn.repeats > _WORTH_NEW else ''}"
    )


def _counted(num_others: int) -> str:
    return f"{num_others} other run{'s' if num_others > 1 else ''}"
