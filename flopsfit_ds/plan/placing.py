"""Where all points of a design are trained: each as is best for it, or all alike where the loss depends on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.memory import ModelProfile
from flopsfit_ds.model.architecture import LanguageShape, ModelShape
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.plan.design import BatchPlan, DesignedPoint
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.layouts import Search, divisors
from flopsfit_ds.plan.placement import Placement, place_run
from flopsfit_ds.plan.recipe.optimizers import optimizer_rules
from flopsfit_ds.plan.recipe.switches import stages_of
from flopsfit_ds.spec import PlacementRules, SweepSpec

_INDIFFERENCE = 0.05
"""Of the whole study's GPU-hours: so much is not worth more GPUs."""

Point = tuple[DesignedPoint[SizedModel], BatchPlan]
_Place = Callable[[Point, int, int], Placement]
"""Places a point on so many GPUs with a micro-batch of so many sequences."""


def placement_rules(spec: SweepSpec, shape: LanguageShape, profile: ModelProfile) -> PlacementRules:
    """The spec's rules, for a model.

    Where a batch may pass parameters by, ranks would reduce gradients of different ones at ZeRO-1 to 3, and hang or
    abort; ZeRO-0 reduces a zero for what has none, and so does ZeRO-3 in the modules that it gathers whole.

    Raises:
        PlanError: Such a model, and neither ZeRO-0 nor a single GPU is allowed; or an optimiser that no allowed stage
            trains alike.
    """
    rules = stages_of(spec.training, optimizer_rules(spec.placement, spec.training))
    if not isinstance(shape, ModelShape) and not profile.recomputes_blocks:  # a user's class does so by itself
        rules = rules.model_copy(update={"activation_checkpointing": "never"})
    if not profile.uneven_gradients:
        return rules
    sound = tuple(stage for stage in rules.zero_stages if stage == 0 or (stage == 3 and profile.leaf_modules))
    if sound:
        return rules.model_copy(update={"zero_stages": sound})
    if rules.num_gpus is None or 1 in rules.num_gpus:
        return rules.model_copy(update={"num_gpus": (1,)})
    raise PlanError(
        f"placement: {profile.name} has parameters that a batch may pass by, so that several GPUs cannot train it at "
        f"ZeRO-{', '.join(map(str, rules.zero_stages))}: their gradients are of different parameters; allow "
        f"zero_stages: [0{', 3' if profile.leaf_modules else ''}] or num_gpus: [1]"
    )


def place_points(spec: SweepSpec, cluster: Cluster, points: Sequence[Point], loss: LossTraits) -> list[Placement]:
    """Place every point of a design.

    Raises:
        PlanError: A point fits nowhere, or no layout holds all where all need the same one.
    """
    if loss.depends_on_layout is not None:
        return _alike(spec, cluster, points, loss)
    placed: list[Placement] = []
    refusals: list[str] = []
    for point in points:
        try:
            placed.append(_place(spec, cluster, *point))
        except PlanError as error:
            refusals.append(str(error))
    if refusals:
        raise PlanError(_say_nowhere(refusals, len(points)))
    return placed


def _say_nowhere(refusals: list[str], num_points: int) -> str:
    """All points of a sweep that fit nowhere, in one line; what is said of several of them once."""
    if num_points == 1:
        return refusals[0]
    return f"{len(refusals)} of {num_points} points cannot be placed: {'; '.join(dict.fromkeys(refusals))}"


def _alike(spec: SweepSpec, cluster: Cluster, points: Sequence[Point], loss: LossTraits) -> list[Placement]:
    """One layout for all points, since their loss depends on it."""
    (first, batches), why = points[0], loss.depends_on_layout
    assert why is not None
    rules = placement_rules(spec, first.model.shape, first.model.profile)
    search = Search(first.model.profile, 1.0, batches.global_batch_sequences, spec.training.precision, cluster, rules)
    counts = [count for count in search.gpu_counts() if count == 1 or not loss.needs_one_gpu]
    if loss.needs_one_gpu and not counts:
        raise PlanError(f"placement.num_gpus: {list(rules.num_gpus or ())} must hold 1, since {why}")

    def place(point: Point, count: int, micro_batch: int) -> Placement:
        only = rules.model_copy(update={"num_gpus": (count,)})
        return _place(spec, cluster, *point, rules=only, micro_batch=micro_batch)

    known = all(point.model.profile.knows_activations for point, _ in points)
    largest = rules.max_micro_batch_size_per_gpu if known else 1
    return _place_alike(points, place, counts, batches.global_batch_sequences, largest, why)


def held_layout_warning(placement: Placement, why: str, heldout_samples: int | None) -> str:
    """What the user should know of a study whose points all have one layout.

    Args:
        placement: Of any point.
        why: The loss depends on it.
        heldout_samples: Where a loss is measured on whole micro-batches only: how many samples there are for it.
    """
    strategy = placement.strategy
    micro_batch = strategy.micro_batch_size_per_gpu
    left_out = 0 if heldout_samples is None else heldout_samples % min(micro_batch, heldout_samples)
    rest = (
        f"; {left_out} of {heldout_samples} held-out samples fill no micro-batch and are left out" if left_out else ""
    )
    return (
        f"the loss depends on the layout ({why}): all points have {strategy.num_gpus} "
        f"GPU{'s' if strategy.num_gpus > 1 else ''}, a micro-batch of {strategy.micro_batch_size_per_gpu} and "
        f"{placement.gradient_accumulation_steps} a step, and these are part of their run ids{rest}"
    )


def _place(
    spec: SweepSpec,
    cluster: Cluster,
    point: DesignedPoint[SizedModel],
    batches: BatchPlan,
    *,
    rules: PlacementRules | None = None,
    micro_batch: int | None = None,
) -> Placement:
    flops = point.model.flops_per_token * batches.num_tokens
    rules = rules or placement_rules(spec, point.model.shape, point.model.profile)
    return place_model(spec, cluster, point.model.profile, flops, batches, rules, micro_batch)


def place_model(
    spec: SweepSpec,
    cluster: Cluster,
    profile: ModelProfile,
    flops: float,
    batches: BatchPlan,
    rules: PlacementRules,
    micro_batch: int | None = None,
) -> Placement:
    """Place one run.

    Args:
        spec: Of the sweep.
        cluster: The hardware.
        profile: Of the model.
        flops: Of the whole training.
        batches: Steps and global batch.
        rules: What may be chosen from.
        micro_batch: The only one that may be chosen; None for any.

    Raises:
        PlanError: It fits nowhere.
    """
    placement = place_run(
        profile,
        training_flops_per_sequence=flops / (batches.num_steps * batches.global_batch_sequences),
        num_steps=batches.num_steps,
        global_batch_sequences=batches.global_batch_sequences,
        precision=spec.training.precision,
        cluster=cluster,
        rules=rules,
        micro_batch_size_per_gpu=micro_batch,
    )
    return placement if rules.moldable else replace(placement, alternatives=())


def _place_alike(
    points: Sequence[Point], place: _Place, gpu_counts: Sequence[int], global_batch: int, largest: int, why: str
) -> list[Placement]:
    """Place all points on one number of GPUs, at the largest micro-batch that every point fits with.

    Args:
        points: What is placed.
        place: Raises PlanError where a point does not fit.
        gpu_counts: Numbers of GPUs there are to choose from.
        global_batch: Sequences a step, the same for all.
        largest: Micro-batch that the rules allow.
        why: What makes the loss depend on the layout.

    Raises:
        PlanError: No layout holds all points.
    """
    options: dict[int, list[Placement]] = {}
    refusal: PlanError | None = None
    for count in gpu_counts:
        share = global_batch // count
        for micro_batch in divisors(share, min(share, largest)):
            try:
                options[count] = [place(point, count, micro_batch) for point in points]
                break
            except PlanError as error:
                refusal = error
    if not options:
        raise PlanError(
            f"no layout holds all {len(points)} points, and they need the same one, since {why}; allow other "
            f"placement.num_gpus, or plan for devices of more memory{f' ({refusal})' if refusal else ''}"
        )
    hours = {
        count: sum(placement.predicted_gpu_hours or 0.0 for placement in placed) for count, placed in options.items()
    }
    fewest = min(hours.values())
    return options[min(count for count in options if hours[count] <= fewest * (1 + _INDIFFERENCE))]
