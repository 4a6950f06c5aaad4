"""Where a run is trained: ZeRO stage, number of GPUs, micro-batch and checkpointing, each with its reason.

Every layout keeps the global batch: micro-batch x accumulation x GPUs is exactly what the user asked for. Of those
that fit, the one with the fewest GPU-seconds is taken, then the fastest.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import DEVICES, Cluster, resolve_cluster
from flopsfit_ds.base.presets import Offload, Precision
from flopsfit_ds.base.units import format_bytes, format_count
from flopsfit_ds.memory import MemoryEstimate, ModelProfile, Strategy
from flopsfit_ds.memory.closed_form import estimate_memory
from flopsfit_ds.plan.layouts import CLEARLY_FITS, Layout, Search, bytes_of, rank_layouts
from flopsfit_ds.spec import PlacementRules

_MAX_RUNNERS_UP = 4
"""For people to see; nothing is decided by them."""
_LARGEST_SEARCH_GPUS = 8192
"""Where the search for hardware that an error could advise ends."""


@dataclass(frozen=True)
class Placement:
    """Where a run is trained, and why.

    The chosen layout stands in its parts, not as a `Layout`: its bytes are those of `memory`, which a simulation may
    replace, and a second copy of them would differ. So it lies in the `plan.json` of every sweep, too.

    Attributes:
        strategy: The chosen one.
        gradient_accumulation_steps: Micro-batches of a step.
        memory: Predicted, by component, on the worst rank.
        device_memory_bytes: Of one device.
        predicted_step_seconds: One optimiser step, by the model that ranks layouts; on a CPU right in proportion only.
        predicted_seconds: The whole run, start not included; on a CPU by runs that this machine has trained, start
            included, and None where none tells.
        predicted_gpu_hours: Over all its GPUs; None as above.
        predicted_cost: In the currency of the spec's price; None without one, and as above.
        points_per_gpu: How many runs like this one may share a GPU.
        reason: Why this one, in a sentence.
        runners_up: Next best, by GPU-seconds.
        alternatives: The best for each number of GPUs that holds the run, fewest first; other numbers than the chosen
            one only where closed forms leave no doubt, for no simulation looks at them.
        profile: What the estimate knows of the model.
        fallbacks: What to try after an out-of-memory, in this order: on the same GPUs, each needing less than the last.
    """

    strategy: Strategy
    gradient_accumulation_steps: int
    memory: MemoryEstimate
    device_memory_bytes: int
    predicted_step_seconds: float
    predicted_seconds: float | None
    predicted_gpu_hours: float | None
    predicted_cost: float | None
    points_per_gpu: int
    reason: str
    runners_up: tuple[Layout, ...]
    alternatives: tuple[Layout, ...]
    fallbacks: tuple[Layout, ...]
    profile: ModelProfile

    @property
    def layout(self) -> Layout:
        """The chosen layout, in the form of its alternatives."""
        return Layout(
            self.strategy,
            self.gradient_accumulation_steps,
            self.memory.peak_allocated_bytes,
            self.memory.device_total_bytes,
            self.memory.host_bytes,
            self.predicted_step_seconds,
        )

    def moved_to(self, layout: Layout, memory: MemoryEstimate, why: tuple[str, ...]) -> Placement:
        """The placement in another layout, or in the same one with its memory known better.

        Args:
            layout: The layout; the chosen one, a fallback or an alternative.
            memory: Of the layout.
            why: What keeps the run from the layout that was chosen before; empty where it stays.
        """
        ratio = layout.predicted_step_seconds / self.predicted_step_seconds
        gpus = ratio * layout.strategy.num_gpus / self.strategy.num_gpus
        sharing = self.device_memory_bytes // max(1, memory.device_total_bytes)
        position = self.fallbacks.index(layout) + 1 if layout in self.fallbacks else 0
        same_gpus = layout.strategy.num_gpus == self.strategy.num_gpus
        return replace(
            self,
            strategy=layout.strategy,
            gradient_accumulation_steps=layout.gradient_accumulation_steps,
            memory=memory,
            predicted_step_seconds=layout.predicted_step_seconds,
            predicted_seconds=None if self.predicted_seconds is None else self.predicted_seconds * ratio,
            predicted_gpu_hours=None if self.predicted_gpu_hours is None else self.predicted_gpu_hours * gpus,
            predicted_cost=None if self.predicted_cost is None else self.predicted_cost * gpus,
            points_per_gpu=max(1, min(self.points_per_gpu, sharing)),
            reason=f"{layout.strategy.label}: {'; '.join(why)}" if why else self.reason,
            alternatives=tuple(
                c for c in self.alternatives if not why or c.strategy.num_gpus > layout.strategy.num_gpus
            ),
            fallbacks=self.fallbacks[position:] if same_gpus else (),
        )


@functools.lru_cache(maxsize=1024)
def shared_search(search: Search) -> Search:
    """The first search that was equal to this one, with all that it has worked out."""
    return search


def place_run(
    profile: ModelProfile,
    *,
    training_flops_per_sequence: float,
    num_steps: int,
    global_batch_sequences: int,
    precision: Precision,
    cluster: Cluster,
    rules: PlacementRules,
    micro_batch_size_per_gpu: int | None = None,
) -> Placement:
    """Choose how a run is laid out.

    Args:
        profile: What memory and speed need to know of the model.
        training_flops_per_sequence: Forward and backward pass, without recomputation.
        num_steps: Optimiser steps.
        global_batch_sequences: Sequences of a step, over all GPUs.
        precision: Of the sweep.
        cluster: The hardware.
        rules: What may be chosen from.
        micro_batch_size_per_gpu: The only one that may be chosen; None for any.

    Raises:
        PlanError: Nothing fits; the message names the smallest hardware that would hold the run.
    """
    search = Search(
        profile,
        training_flops_per_sequence,
        global_batch_sequences,
        precision,
        cluster,
        rules,
        micro_batch_size_per_gpu,
    )
    choice = choose_layout(shared_search(search))
    best, memory = choice.ranked[0], choice.memory
    chosen = best.strategy
    seconds = best.predicted_step_seconds * num_steps
    gpu_hours = seconds * chosen.num_gpus / 3600
    price = cluster.price_per_gpu_hour
    per_gpu = {c.strategy.num_gpus: c for c in reversed(choice.others)} | {chosen.num_gpus: best}
    alone = chosen.num_gpus > 1 or not profile.knows_activations
    sharing = 1 if alone else cluster.device_memory_bytes // max(1, memory.device_total_bytes)
    return Placement(
        strategy=chosen,
        gradient_accumulation_steps=best.gradient_accumulation_steps,
        memory=memory,
        device_memory_bytes=cluster.device_memory_bytes,
        predicted_step_seconds=best.predicted_step_seconds,
        predicted_seconds=seconds,
        predicted_gpu_hours=gpu_hours,
        predicted_cost=None if price is None else price * gpu_hours,
        points_per_gpu=max(1, min(rules.points_per_gpu, sharing)),
        reason=choice.reason,
        runners_up=choice.ranked[1 : 1 + _MAX_RUNNERS_UP],
        alternatives=tuple(per_gpu[count] for count in sorted(per_gpu)),
        fallbacks=choice.fallbacks,
        profile=profile,
    )


@dataclass(frozen=True)
class Choice:
    """What does not depend on how long a run is.

    Attributes:
        ranked: Layouts that fit, best first.
        others: Those that clearly do, best first.
        memory: Of the best.
        reason: Why it is the best.
        fallbacks: After an out-of-memory of the best.
    """

    ranked: tuple[Layout, ...]
    others: tuple[Layout, ...]
    memory: MemoryEstimate
    reason: str
    fallbacks: tuple[Layout, ...]


@functools.lru_cache(maxsize=1024)
def choose_layout(search: Search) -> Choice:
    """Points of a sweep share models: of 1,000 in 50 budgets about 100 differ.

    Raises:
        PlanError: Nothing fits.
    """
    fitting = search.best_of_each_layout()
    if not fitting:
        raise PlanError(_explain_nothing_fits(search))
    best, *rest = rank_layouts(fitting)
    best = search.with_room_for_others(best)
    ranked = (best, *rest)
    memory = estimate_memory(
        search.profile, best.strategy, search.cluster, search.rules.memory_margin, best.gradient_accumulation_steps
    )
    share = CLEARLY_FITS if search.cluster.kind == "cuda" else 1.0
    others = tuple(rank_layouts(search.best_of_each_layout(share)))
    return Choice(ranked, others, memory, _explain(search, best, [*ranked]), search.fallbacks(best))


def _explain(search: Search, chosen: Layout, fitting: list[Layout]) -> str:
    """One sentence: what it takes, and what the nearest others would take or how fast they would be."""
    available = search.cluster.device_memory_bytes
    head = f"{chosen.strategy.label}: "
    if not search.profile.knows_activations:
        return (
            f"{head}{bytes_of(chosen.device_total_bytes, available)} without activations, which are not known: a "
            "simulation measures them before it is trained, else it keeps the smallest micro-batch"
        )
    told = _beside_rivals(search, chosen, fitting)
    return "; ".join([f"{head}{bytes_of(chosen.device_total_bytes, available)}", *([told] if told else [])])


def compared_with_nearest(search: Search, layout: Layout) -> str:
    """What the nearest others to a layout would take or how fast they would be; empty where there are none.

    Args:
        search: That found the layout.
        layout: Of those that fit, whichever was chosen.
    """
    return _beside_rivals(search, layout, [*choose_layout(search).ranked])


def _beside_rivals(search: Search, chosen: Layout, fitting: list[Layout]) -> str:
    return ", ".join(
        f"{rival.name}: {_compared(search, chosen, rival, fitting)}"
        for rival in _nearest_rivals(search, chosen.strategy)
    )


@dataclass(frozen=True)
class _Rival:
    """Layouts that differ in one thing from the chosen one, which takes its best in everything else that is None."""

    name: str
    num_gpus: int
    stage: int | None = None
    checkpointing: bool | None = None
    offload: Offload = "none"

    def is_one(self, strategy: Strategy) -> bool:
        """Whether a strategy is among them."""
        return (
            strategy.num_gpus == self.num_gpus
            and self.stage in (None, strategy.zero_stage)
            and self.checkpointing in (None, strategy.activation_checkpointing)
            and strategy.offload == self.offload
        )


def _nearest_rivals(search: Search, chosen: Strategy) -> list[_Rival]:
    """The next lower stage, the next fewer and more GPUs, and the same without offload or checkpointing."""
    stages = [stage for stage, offload in search.stages() if offload == "none"]
    counts = search.gpu_counts()
    rivals: list[_Rival] = []
    if chosen.offload != "none":
        rivals += [_Rival("without offload", chosen.num_gpus, stage=3)] if 3 in stages else []
    else:
        lower = [stage for stage in stages if stage < chosen.zero_stage]
        rivals += [_Rival(f"ZeRO-{stage}", chosen.num_gpus, stage=stage) for stage in lower[-1:]]
    if chosen.activation_checkpointing and False in search.checkpointing():
        rivals.append(
            _Rival(
                "without checkpointing", chosen.num_gpus, chosen.zero_stage, checkpointing=False, offload=chosen.offload
            )
        )
    fewer, more = [n for n in counts if n < chosen.num_gpus], [n for n in counts if n > chosen.num_gpus]
    for count in (*fewer[-1:], *more[:1]):
        rivals.append(_Rival(f"{count} GPU{'s' if count > 1 else ''}", count, offload=chosen.offload))
    return rivals


def _compared(search: Search, chosen: Layout, rival: _Rival, fitting: list[Layout]) -> str:
    """The speed of each GPU in the best of these layouts, or what the smallest of them lacks."""
    found = [layout for layout in fitting if rival.is_one(layout.strategy)]
    if found:
        return f"{chosen.gpu_seconds / min(each.gpu_seconds for each in found):.0%} of the speed a GPU"
    needs = [
        search.layout(stage, offload, rival.num_gpus, checkpointing)
        for stage, offload in search.stages()
        for checkpointing in search.checkpointing()
        if rival.is_one(search.layout(stage, offload, rival.num_gpus, checkpointing).strategy)
    ]
    if not needs:
        return "not allowed"
    return f"would need {search.need(min(needs, key=lambda each: each.device_total_bytes))}"


def _explain_nothing_fits(search: Search) -> str:
    """The least need, and the smallest hardware that meets it."""
    counts = search.gpu_counts()
    if not counts:
        return (
            f"placement.num_gpus: none of {list(search.rules.num_gpus or ())} is at most {search.cluster.num_gpus} "
            f"GPUs, in whole nodes of {search.cluster.gpus_per_node} beyond one, and divides the global batch of "
            f"{search.global_batch} sequences"
        )
    tried = [
        search.layout(stage, offload, count, checkpointing)
        for count in counts
        for stage, offload in search.stages()
        for checkpointing in search.checkpointing()
    ]
    if not tried:
        return "placement: offload is always, which needs ZeRO-3 in placement.zero_stages"
    least = min(tried, key=lambda layout: layout.device_total_bytes)
    wider = search.wider_batch(max(counts))
    divides = (
        f"; {search.global_batch} sequences a step divide over no more than {max(counts)} GPUs, a global batch of "
        f"{wider} over more"
    )
    return (
        f"{search.profile.name} of {format_count(search.profile.num_params)} parameters does not fit "
        f"{search.cluster.num_gpus} x {search.cluster.device_name}: {least.strategy.label} with a micro-batch of 1 "
        f"needs {search.need(least)}; {_smallest_hardware(search)}"
        f"{divides if wider else ''}"
    )


def _smallest_hardware(search: Search) -> str:
    """The smallest number of GPUs of this kind, and the smallest device of the table, that would hold the run."""
    answers = []
    count = search.cluster.num_gpus
    while count <= min(_LARGEST_SEARCH_GPUS, search.global_batch) and search.rules.num_gpus is None:
        nodes = math.ceil(count / search.cluster.gpus_per_node)
        larger = replace(search, cluster=replace(search.cluster, num_nodes=nodes))
        found = [c for c in larger.best_of_each_layout() if c.strategy.num_gpus == count]
        if found:
            answers.append(f"{count} x {search.cluster.device_name} ({rank_layouts(found)[0].strategy.label})")
            break
        count *= 2
    if search.cluster.kind == "cuda":
        for device in sorted(DEVICES, key=lambda entry: entry.memory_bytes):
            if device.memory_bytes <= search.cluster.device_memory_bytes:
                continue
            other = resolve_cluster(
                search.precision,
                device=device.name,
                gpus_per_node=search.cluster.gpus_per_node,
                num_nodes=search.cluster.num_nodes,
                host_memory=search.cluster.host_memory_bytes,
            )
            found = replace(search, cluster=other).best_of_each_layout()
            if found:
                best = rank_layouts(found)[0].strategy
                answers.append(f"{best.num_gpus} x {device.name} (ZeRO-{best.zero_stage})")
                break
    if answers:
        return "the smallest hardware that would hold it: " + ", or ".join(answers)
    layouts = [
        search.layout(s, o, n, c)
        for n in search.gpu_counts()
        for s, o in search.stages()
        for c in search.checkpointing()
    ]
    need = min(layout.device_total_bytes for layout in layouts)
    return f"it needs devices of {format_bytes(need)}, or a shorter context"
