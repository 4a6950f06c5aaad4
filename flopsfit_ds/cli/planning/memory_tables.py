"""What `estimate-memory` shows: tables for people, a dictionary for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.units import format_bytes, format_count
from flopsfit_ds.memory import MemoryEstimate, ModelProfile, Strategy
from flopsfit_ds.plan.layouts import Layout, Search
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan

if TYPE_CHECKING:
    from rich.text import Text

    from flopsfit_ds.simulate.results import RankMemory


_PARTS = ("weights", "grads", "states", "buckets", "activations", "loss", "other")
_LEAST_TOLD_FIRST = ("ckpt", "micro", "speed")
_WIDTH = 120  # columns that all parts take; a narrower terminal leaves the parts out


@dataclass(frozen=True)
class Point:
    """One model to look at; several runs may share it.

    Attributes:
        label: For people.
        run_ids: Runs that train it; empty for a shape by flags.
        shape: Of the model.
        frozen_parameters: Glob patterns of what is not trained.
        profile: What the closed forms know of it.
        search: The ways to lay it out.
        chosen: The recommended one, by closed forms.
        reason: Why.
        optimizer: What trains it; None for AdamW.
    """

    label: str
    run_ids: tuple[str, ...]
    shape: Any
    frozen_parameters: tuple[str, ...]
    profile: ModelProfile
    search: Search
    chosen: Layout
    reason: str
    optimizer: OptimizerPlan | None = None


@dataclass(frozen=True)
class Answer:
    """What is known of one point.

    Attributes:
        point: The point.
        rows: Every stage, offload and number of GPUs, by closed forms.
        chosen: The recommended one.
        memory: Its memory, simulated where that was asked for and possible.
        reason: Why.
        rank: The worst rank of the simulation; None without one.
        problem: What kept the simulation from answering; None where it did.
    """

    point: Point
    rows: tuple[tuple[Layout, MemoryEstimate], ...]
    chosen: Layout
    memory: MemoryEstimate
    reason: str
    rank: RankMemory | None
    problem: str | None


def as_json_values(answer: Answer) -> dict[str, Any]:
    """One entry of `points` of `estimate-memory --json`, a documented interface.

    The values are for `pydantic_core.to_json`, which writes dataclasses as objects.
    Keys: `label`, `run_ids`, `num_params`, `num_params_trainable`, `trainable_fraction`, `device` (the cluster),
    `strategies` and `chosen`, and `problem`, which is null where the simulation answered. A strategy has `zero_stage`,
    `num_gpus`, `micro_batch_size_per_gpu`, `activation_checkpointing`, `offload`, `precision`,
    `gradient_accumulation_steps`, `peak_allocated_bytes`, `peak_reserved_bytes`, `device_total_bytes`, `host_bytes` (of
    one rank), `peak_phase`, `components` (bytes that sum to the allocated peak), `margin` (name, num_bytes, layer,
    source), `predicted_step_seconds`, `method` (`closed-form` or `simulation`) and `fits`, which is null where it would
    without its activations, of which nothing is known; `chosen` has `reason` and `simulated_rank` besides.
    """
    point = answer.point
    rows = [_strategy_json(layout, memory, point) for layout, memory in answer.rows]
    chosen = _strategy_json(answer.chosen, answer.memory, point)
    profile = point.profile
    return {
        "label": point.label,
        "run_ids": list(point.run_ids),
        "num_params": profile.num_params,
        "num_params_trainable": profile.num_params_trainable,
        "trainable_fraction": profile.num_params_trainable / profile.num_params,
        "device": point.search.cluster,
        "strategies": rows,
        "chosen": chosen | {"reason": answer.reason, "simulated_rank": answer.rank},
        "problem": answer.problem,
    }


def _strategy_json(layout: Layout, memory: MemoryEstimate, point: Point) -> dict[str, Any]:
    strategy: Strategy = layout.strategy
    return asdict(strategy) | {
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "peak_allocated_bytes": memory.peak_allocated_bytes,
        "peak_reserved_bytes": memory.peak_reserved_bytes,
        "device_total_bytes": memory.device_total_bytes,
        "host_bytes": memory.host_bytes,
        "peak_phase": memory.peak_phase,
        "components": memory.components,
        "margin": memory.margin,
        "predicted_step_seconds": layout.predicted_step_seconds,
        "method": memory.method,
        "fits": _fits(layout, memory, point),
    }


def _fits(layout: Layout, memory: MemoryEstimate, point: Point) -> bool | None:
    """Whether host and device hold it; None where the activations are missing from what would fit."""
    search = point.search
    sized = replace(layout, device_total_bytes=memory.device_total_bytes, host_bytes=memory.host_bytes)
    fits = search.fits(sized)
    return None if fits and memory.method == "closed-form" and not search.profile.knows_activations else fits


def print_answers(answers: Iterable[Answer], *, detail: bool, warnings: list[str]) -> None:
    """Tables of all points, and what the user should know."""
    from flopsfit_ds.study.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    for answer in answers:
        _print_point(console, answer)
        if detail:
            _print_detail(console, answer)
    for warning in warnings:
        console.warn(warning)


def _print_point(console: Any, answer: Answer) -> None:
    """Strategies x GPUs of one point, the recommended one in bold."""
    from rich.markup import escape

    point, cluster = answer.point, answer.point.search.cluster
    profile = point.profile
    share = profile.num_params_trainable / profile.num_params
    trained = "" if share == 1 else f", {share:.2%} of them trained"
    console.tell(
        f"\n[bold]{escape(point.label)}[/bold]: {format_count(profile.num_params)} parameters{trained}, "
        f"{profile.precision}, on {cluster.device_name} of {format_bytes(cluster.device_memory_bytes)}",
        markup=True,
    )
    parts_shown = _PARTS if console.width >= _WIDTH else ()
    rows = [("ZeRO", "GPUs", "micro", "ckpt", *parts_shown, "peak", "device", "speed", "fits")]
    styles = ["bold"]
    fastest = min(layout.gpu_seconds for layout, _ in answer.rows)
    for layout, memory in answer.rows:
        strategy = layout.strategy
        chosen = layout == answer.chosen
        fits = _fits(layout, memory, point)
        cells = (
            f"{strategy.zero_stage}" + ("+off" if strategy.offload != "none" else ""),
            str(strategy.num_gpus),
            str(strategy.micro_batch_size_per_gpu),
            "yes" if strategy.activation_checkpointing else "no",
            *((_short(num_bytes) for num_bytes in _parts(memory)) if parts_shown else ()),
            _short(memory.peak_allocated_bytes),
            _short(memory.device_total_bytes),
            f"{fastest / layout.gpu_seconds:.0%}",
            "?" if fits is None else "yes" if fits else "no",
        )
        rows.append(cells)
        styles.append("bold" if chosen else "dim" if fits is False else "")
    rows = _narrowed(rows, console.width)
    console.print(_aligned(rows, styles), soft_wrap=True)
    how = "simulated" if answer.memory.method == "simulation" else "closed form"
    console.tell(
        f"[bold]{escape(answer.reason)}[/bold]; peak {format_bytes(answer.memory.peak_allocated_bytes)} allocated, "
        f"{format_bytes(answer.memory.device_total_bytes)} of the device ({how})",
        markup=True,
    )
    if answer.problem:
        console.tell(answer.problem, style="yellow")


def _narrowed(rows: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The rows without what is told last where they are wider than the terminal; `--json` has it."""
    kept = list(zip(*rows, strict=True))
    for name in _LEAST_TOLD_FIRST:
        if sum(max(len(cell) for cell in column) + 2 for column in kept) - 2 <= width:
            break
        kept = [column for column in kept if column[0] != name]
    return list(zip(*kept, strict=True))


def _aligned(rows: Sequence[tuple[str, ...]], styles: Sequence[str]) -> Text:
    """Right-aligned columns as one text: a hundred such tables take a tenth of a second, rich's own take several."""
    from rich.text import Text

    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return Text("\n").join(Text(line, style=style) for line, style in zip(lines, styles, strict=True))


def _parts(memory: MemoryEstimate) -> tuple[int, ...]:
    """Components, the related ones taken together; under the names of `_PARTS`."""
    parts = memory.components
    return (
        parts.parameters + parts.gathered_parameters,
        parts.gradients,
        parts.master_weights + parts.optimizer_states,
        parts.communication_buckets,
        parts.saved_activations,
        parts.logits_and_loss,
        parts.transients + parts.library_workspaces,
    )


def layout_of(layout: Layout) -> tuple[int, int, str]:
    """Stage, GPUs and offload: what has one row of a table."""
    return layout.strategy.zero_stage, layout.strategy.num_gpus, layout.strategy.offload


def _short(num_bytes: int) -> str:
    return "-" if num_bytes == 0 else format_bytes(num_bytes).replace("iB", "").replace(" ", "")


def _print_detail(console: Any, answer: Answer) -> None:
    """Components and margin of the chosen strategy, line by line, and the three numbers."""
    from rich.table import Table

    memory = answer.memory
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, num_bytes in memory.components.items():
        if num_bytes:
            table.add_row(name.replace("_", " "), format_bytes(num_bytes), "")
    table.add_row("[bold]peak allocated[/bold]", format_bytes(memory.peak_allocated_bytes), f"in {memory.peak_phase}")
    for layer, total, number in (
        ("reserved", "peak reserved", memory.peak_reserved_bytes),
        ("device", "of the device", memory.device_total_bytes),
    ):
        for line in memory.margin:
            if line.layer == layer:
                table.add_row(line.name, format_bytes(line.num_bytes), line.source)
        table.add_row(f"[bold]{total}[/bold]", format_bytes(number), "")
    if memory.host_bytes:
        table.add_row("host, each rank", format_bytes(memory.host_bytes), "")
    console.print(table)
    if answer.rank is not None:
        phases = ", ".join(f"{peak.phase} {format_bytes(peak.peak_bytes)}" for peak in answer.rank.phases)
        console.tell(
            f"rank {answer.rank.rank} of {answer.rank.world_size}, at {answer.rank.peak_operation} in "
            f"{answer.rank.peak_module or 'no module'}; peaks: {phases}",
        )
