"""Where a run is trained in the end: the closed forms propose, the simulation of the engine decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.units import format_bytes
from flopsfit_ds.memory import MemoryEstimate, ModelProfile, Strategy
from flopsfit_ds.plan.design import BatchPlan
from flopsfit_ds.plan.layouts import CLEARLY_FITS, Layout
from flopsfit_ds.plan.placing import place_model, placement_rules
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.simulate.estimate import Simulator
from flopsfit_ds.simulate.results import RankMemory
from flopsfit_ds.simulate.server import SimulationError

if TYPE_CHECKING:
    from flopsfit_ds.simulate.case import Case

_PATIENCE_SECONDS = 180.0
"""GPUs wait for the review, and the other nodes of a launch for this one: five minutes at most."""
_MEASURED_SEQUENCES = 64
"""The largest micro-batch that rules allow by default: there activations are the peak, not gradients."""
_BENT = 0.02
"""What is saved grows by so much more from one doubling to the next where pairs of sequences save something: more than
whole pieces of an allocator make of a line."""


@dataclass(frozen=True)
class Decision:
    """The first of some layouts that fits by simulation.

    Attributes:
        layout: It; the first of all where none fits.
        memory: Its simulated memory.
        rank: The worst rank of the simulation.
        fits: Whether the device holds it.
        passed_over: What did not fit before it, in words.
    """

    layout: Layout
    memory: MemoryEstimate
    rank: RankMemory
    fits: bool
    passed_over: tuple[str, ...]


def decide_layout(
    simulator: Simulator,
    case: Case,
    profile: ModelProfile,
    layouts: Iterable[Layout],
    cluster: Cluster,
    memory_margin: float,
) -> Decision:
    """Simulate layouts in their order until one fits.

    Args:
        simulator: Runs the engine.
        case: What is trained.
        profile: Of its model.
        layouts: Best first; at least one.
        cluster: The hardware.
        memory_margin: Share of the device kept for fragmentation.

    Raises:
        SimulationError: The model does not run on fake tensors, or the installed versions fail the self-test.
    """
    first: Decision | None = None
    passed_over: list[str] = []
    for layout in layouts:
        memory, rank = simulator.estimate(
            case,
            profile.num_params,
            profile.num_params_trainable,
            layout.strategy,
            layout.gradient_accumulation_steps,
            cluster,
            memory_margin,
            leaf_modules=profile.leaf_modules,
        )
        if memory.device_total_bytes <= cluster.device_memory_bytes:
            return Decision(layout, memory, rank, True, tuple(passed_over))
        passed_over.append(
            f"{layout.strategy.label} with a micro-batch of {layout.strategy.micro_batch_size_per_gpu} needs "
            f"{format_bytes(memory.device_total_bytes)} simulated"
        )
        first = first or Decision(layout, memory, rank, False, ())
    assert first is not None
    return replace(first, passed_over=tuple(passed_over))


def learn_activations(simulator: Simulator, case: Case, profile: ModelProfile, cluster: Cluster) -> ModelProfile:
    """The profile of a model whose activations nothing else could measure, with what a simulation finds them to be.

    Three large micro-batches are simulated on one GPU at ZeRO-0: what a larger adds to the higher of the peaks of the
    forward and the backward pass is what its sequences hold there, saved or passing, and what a still larger adds to
    that is of their pairs. In small ones the peak is that of the gradients, and does not grow.

    Args:
        simulator: Runs the engine.
        case: What is trained.
        profile: Of its model.
        cluster: The hardware.

    Raises:
        SimulationError: The model does not run on fake tensors, or the installed versions fail the self-test.
    """
    peaks = []
    for sequences in (_MEASURED_SEQUENCES, 2 * _MEASURED_SEQUENCES, 4 * _MEASURED_SEQUENCES):
        strategy = Strategy(0, 1, sequences, False, "none", profile.precision)
        params, trainable = profile.num_params, profile.num_params_trainable
        _, rank = simulator.estimate(case, params, trainable, strategy, 1, cluster)
        peaks.append(max(phase.peak_bytes for phase in rank.phases if phase.phase in ("forward", "backward")))
    rise, later = ((more - few) / times for few, more, times in zip(peaks, peaks[1:], (1, 2), strict=False))
    of_pairs = max(0, later - rise) / 3 if later > (1 + _BENT) * rise else 0  # of a sequence with those of the first
    share = max(1, math.ceil((rise - 3 * of_pairs) / (_MEASURED_SEQUENCES * profile.num_blocks)))
    return replace(
        profile,
        block_saved_bytes=share,
        block_saved_bytes_zero3=share,
        block_input_bytes=share,
        block_transient_bytes=0,
        outside_saved_bytes=0,
        pair_saved_bytes=math.ceil(of_pairs / _MEASURED_SEQUENCES**2),
        pair_transient_bytes=0,
    )


def measure_unknown(
    plan: SweepPlan,
    runs: Sequence[RunPlan],
    progress: Callable[[int, int], None],
    simulator: Simulator,
    case_of: Callable[[RunPlan], Case],
) -> SweepPlan:
    """The plan with those runs placed anew whose activations were not known, by what a simulation finds.

    A model that does not run on fake tensors either keeps the smallest micro-batch, and so does what is not reached
    within some minutes; the plan gets a warning of it.

    Args:
        plan: The plan.
        runs: Those of its runs that are to be trained.
        progress: Told how many runs are measured, of how many.
        simulator: Runs the engine.
        case_of: What a run trains.

    Raises:
        PlanError: A run fits nowhere.
    """
    unknown = [run for run in runs if not run.placement.profile.knows_activations]
    placed: dict[str, RunPlan] = {}
    warnings: list[str] = []
    began = time.monotonic()
    for number, run in enumerate(unknown):
        progress(number, len(unknown))
        try:
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise SimulationError(f"the {_PATIENCE_SECONDS:.0f} s that a start waits for it")
            profile = learn_activations(simulator, case_of(run), run.placement.profile, plan.cluster)
        except SimulationError as error:
            warnings.append(
                f"{run.label}: the memory of its activations is not known, for the simulation stopped at {error}; it "
                "keeps the smallest micro-batch, and whether that fits is not known"
            )
        else:
            placed[run.run_id] = placed_with(plan, run, profile)
    if unknown:
        progress(len(unknown), len(unknown))
    return _with_runs(plan, placed, warnings)


def placed_with(plan: SweepPlan, run: RunPlan, profile: ModelProfile) -> RunPlan:
    """A run of a plan placed anew, where more is known of its model than before.

    Raises:
        PlanError: It fits nowhere.
    """
    rules, held = placement_rules(plan.spec, run.model, profile), None
    if run.layout_held:
        strategy = run.placement.strategy
        rules, held = rules.model_copy(update={"num_gpus": (strategy.num_gpus,)}), strategy.micro_batch_size_per_gpu
    batches = BatchPlan(run.num_steps, run.global_batch_sequences, run.num_tokens, made_smaller=False)
    return replace(run, placement=place_model(plan.spec, plan.cluster, profile, run.flops, batches, rules, held))


def language_model(run: RunPlan) -> Case:
    """What a run of a spec trains."""
    from flopsfit_ds.simulate.case import LanguageModelCase

    return LanguageModelCase(run.model, run.recipe.frozen_parameters, run.recipe.optimizer)


def _with_runs(plan: SweepPlan, changed: Mapping[str, RunPlan], warnings: Sequence[str]) -> SweepPlan:
    return replace(
        plan,
        runs=tuple(changed.get(run.run_id, run) for run in plan.runs),
        warnings=tuple(dict.fromkeys((*plan.warnings, *warnings))),
    )


def review_placements(
    plan: SweepPlan,
    runs: Sequence[RunPlan],
    progress: Callable[[int, int], None],
    simulator: Simulator | None = None,
    case_of: Callable[[RunPlan], Case] | None = None,
) -> SweepPlan:
    """The plan with the placements of some runs checked by simulation, and moved where they do not fit.

    Looked at is what comes near to filling a GPU, and every model whose activations are not known (`measure_unknown`).
    A model that does not run on fake tensors keeps its closed-form placement, and so does what is not reached within
    some minutes; the plan gets a warning of it.

    Args:
        plan: The plan.
        runs: Those of its runs that are to be trained.
        progress: Told how many placements are checked, of how many.
        simulator: Runs the engine; without it, one for this call.
        case_of: What a run trains; without it, a language model.

    Raises:
        PlanError: Nothing that was planned for a run fits.
    """
    if case_of is None:
        if plan.corpus.source == "dataset":
            return plan  # a study's class is only known to `find_optimal`, which has reviewed its plan
        case_of = language_model
    with simulator or Simulator() as simulator:
        plan = measure_unknown(plan, runs, progress, simulator, case_of)
        if plan.cluster.kind == "cpu":
            return plan  # a CPU slot has no memory of its own to run out of
        wanted = {run.run_id for run in runs}
        return _review_near(plan, [run for run in plan.runs if run.run_id in wanted], progress, simulator, case_of)


def _review_near(
    plan: SweepPlan,
    runs: Sequence[RunPlan],
    progress: Callable[[int, int], None],
    simulator: Simulator,
    case_of: Callable[[RunPlan], Case],
) -> SweepPlan:
    """The plan with the placements of what nearly fills a GPU checked."""
    limit = CLEARLY_FITS * plan.cluster.device_memory_bytes
    near = [
        run
        for run in runs
        if run.placement.memory.device_total_bytes > limit and run.placement.profile.knows_activations
    ]
    reviewed: dict[str, RunPlan] = {}
    warnings: list[str] = []
    began = time.monotonic()
    if near:
        for number, run in enumerate(near):
            progress(number, len(near))
            if time.monotonic() - began > _PATIENCE_SECONDS:
                warnings.append(
                    f"{len(near) - number} of {len(near)} points that nearly fill a GPU are placed by closed forms "
                    "alone: `flopsfit-ds estimate-memory` on the spec simulates them all, and remembers"
                )
                break
            try:
                reviewed[run.run_id] = _review(simulator, plan, run, case_of(run))
            except SimulationError as error:
                warnings.append(f"{run.label}: placed by closed forms alone, for the simulation stopped at {error}")
        progress(len(near), len(near))
    return _with_runs(plan, reviewed, warnings)


def _review(simulator: Simulator, plan: SweepPlan, run: RunPlan, case: Case) -> RunPlan:
    placement = run.placement
    chosen = placement.layout
    larger = [c for c in placement.alternatives if c.strategy.num_gpus > chosen.strategy.num_gpus]
    decision = decide_layout(
        simulator,
        case,
        placement.profile,
        (chosen, *placement.fallbacks, *larger),
        plan.cluster,
        plan.spec.placement.memory_margin,
    )
    if not decision.fits:
        raise PlanError(
            f"{run.label} does not fit {plan.cluster.num_gpus} x {plan.cluster.device_name}, of "
            f"{format_bytes(plan.cluster.device_memory_bytes)} each: {'; '.join(decision.passed_over)}; plan for more "
            "GPUs, shorten the context, lower placement.memory_margin, or set execution.simulate_memory=false to try"
        )
    moved = placement.moved_to(decision.layout, decision.memory, decision.passed_over)
    return replace(run, placement=moved)
