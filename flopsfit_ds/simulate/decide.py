"""Where a run is trained in the end: the closed forms propose, the simulation of the engine decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.units import format_bytes
from flopsfit_ds.memory import MemoryEstimate, ModelProfile
from flopsfit_ds.plan.candidates import CLEARLY_FITS, Candidate
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.simulate.estimate import Simulator
from flopsfit_ds.simulate.results import RankMemory
from flopsfit_ds.simulate.server import SimulationError

if TYPE_CHECKING:
    from flopsfit_ds.simulate.case import Case

_PATIENCE_SECONDS = 180.0
"""GPUs wait for the review, and the other nodes of a launch for this one: five minutes at most."""


@dataclass(frozen=True)
class Decision:
    """The first of some candidates that fits by simulation.

    Attributes:
        candidate: It; the first of all where none fits.
        memory: Its simulated memory.
        rank: The worst rank of the simulation.
        fits: Whether the device holds it.
        passed_over: What did not fit before it, in words.
    """

    candidate: Candidate
    memory: MemoryEstimate
    rank: RankMemory
    fits: bool
    passed_over: tuple[str, ...]


def decide_layout(
    simulator: Simulator,
    case: Case,
    profile: ModelProfile,
    candidates: Iterable[Candidate],
    cluster: Cluster,
    memory_margin: float,
) -> Decision:
    """Simulate candidates in their order until one fits.

    Args:
        simulator: Runs the engine.
        case: What is trained.
        profile: Of its model.
        candidates: Best first; at least one.
        cluster: The hardware.
        memory_margin: Share of the device kept for fragmentation.

    Raises:
        SimulationError: The model does not run on fake tensors, or versions are unknown.
    """
    first: Decision | None = None
    passed_over: list[str] = []
    for candidate in candidates:
        memory, rank = simulator.estimate(
            case,
            profile.num_params,
            profile.num_params_trainable,
            candidate.strategy,
            candidate.gradient_accumulation_steps,
            cluster,
            memory_margin,
        )
        if memory.device_total_bytes <= cluster.device_memory_bytes:
            return Decision(candidate, memory, rank, True, tuple(passed_over))
        passed_over.append(
            f"{candidate.strategy.label} with a micro-batch of {candidate.strategy.micro_batch_size_per_gpu} needs "
            f"{format_bytes(memory.device_total_bytes)} simulated"
        )
        first = first or Decision(candidate, memory, rank, False, ())
    assert first is not None
    return replace(first, passed_over=tuple(passed_over))


def review_placements(
    plan: SweepPlan, runs: Sequence[RunPlan], progress: Callable[[int, int], None], simulator: Simulator | None = None
) -> SweepPlan:
    """The plan with the placements of some runs checked by simulation, and moved where they do not fit.

    Looked at is what comes near to filling a GPU. A model that does not run on fake tensors keeps its closed-form
    placement, and so does what is not reached within some minutes; the plan gets a warning of it.

    Args:
        plan: The plan.
        runs: Those of its runs that are to be trained.
        progress: Told how many placements are checked, of how many.
        simulator: Runs the engine; without it, one for this call.

    Raises:
        PlanError: Nothing that was planned for a run fits.
    """
    if plan.cluster.kind == "cpu" or plan.corpus.source == "dataset":
        return plan  # a CPU slot has no memory of its own to run out of; a study's class is only known in its process
    limit = CLEARLY_FITS * plan.cluster.device_memory_bytes
    near = [run for run in runs if run.placement.memory.device_total_bytes > limit]
    reviewed: dict[str, RunPlan] = {}
    warnings: list[str] = []
    began = time.monotonic()
    with simulator or Simulator() as simulator:
        for number, run in enumerate(near):
            progress(number, len(near))
            if time.monotonic() - began > _PATIENCE_SECONDS:
                warnings.append(
                    f"{len(near) - number} of {len(near)} points that nearly fill a GPU are placed by closed forms "
                    "alone: `flopsfit-ds estimate-memory` on the spec simulates them all, and remembers"
                )
                break
            try:
                reviewed[run.run_id] = _review(simulator, plan, run)
            except SimulationError as error:
                warnings.append(f"{run.label}: placed by closed forms alone, for the simulation stopped at {error}")
        if near:
            progress(len(near), len(near))
    return replace(
        plan,
        runs=tuple(reviewed.get(run.run_id, run) for run in plan.runs),
        warnings=tuple(dict.fromkeys((*plan.warnings, *warnings))),
    )


def _review(simulator: Simulator, plan: SweepPlan, run: RunPlan) -> RunPlan:
    from flopsfit_ds.simulate.case import LanguageModelCase

    placement = run.placement
    chosen = placement.candidate
    larger = [c for c in placement.alternatives if c.strategy.num_gpus > chosen.strategy.num_gpus]
    decision = decide_layout(
        simulator,
        LanguageModelCase(run.model, run.recipe.frozen_parameters),
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
    moved = placement.moved_to(decision.candidate, decision.memory, decision.passed_over)
    return replace(run, placement=moved)
