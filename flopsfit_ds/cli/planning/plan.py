"""`plan`: every number of a sweep before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from flopsfit_ds.base.units import format_bytes, format_count, format_flops, format_seconds, known_seconds
from flopsfit_ds.cli.options import AllowImport, AsJson, Overrides, SpecArgument, plan_from

if TYPE_CHECKING:
    from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
    from flopsfit_ds.spec import Training

_LEAST_TOLD_FIRST = (
    "eps",
    "beta2",
    "decay",
    "warm-up",
    "/6ND",
    "LR",
    "D/N",
    "steps",
    "batch",
    "a GPU",
    "D",
    "time",
    "where",
)
_GAP = 2  # columns of the terminal
_NOTABLE = 1.01
"""Times longer: less is below what predictions can tell."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def plan(  # pyright: ignore[reportUnusedFunction]
        spec: SpecArgument, overrides: Overrides = None, allow_import: AllowImport = None, as_json: AsJson = False
    ) -> None:
        """Show what a sweep would train, where, and why.

        Example: flopsfit-ds plan quickstart design.sizes_per_budget=7
        """
        sweep = plan_from(spec, overrides, allow_import)
        if as_json:
            print(json.dumps(sweep.to_json_dict(), indent=1))
        else:
            print_plan(sweep)


def _cells(run: RunPlan) -> dict[str, str]:
    place = run.placement
    strategy = place.strategy
    where = f"ZeRO-{strategy.zero_stage}" + ("+offload" if strategy.offload != "none" else "")
    return {
        "run": run.run_id,
        "N": format_count(run.num_params_total),
        "D": format_count(run.num_tokens),
        "D/N": f"{run.num_tokens / run.num_params_total:.3g}",
        "FLOPs": format_flops(run.flops),
        "/6ND": f"{run.flops / run.conventional_flops:.2f}",
        "steps": str(run.num_steps),
        "batch": f"{strategy.num_gpus}x{strategy.micro_batch_size_per_gpu}x{place.gradient_accumulation_steps}",
        "LR": f"{run.recipe.learning_rate:.2g}",
        "where": where + ("+ckpt" if strategy.activation_checkpointing else ""),
        "a GPU": ("" if place.profile.knows_activations else ">") + format_bytes(place.memory.device_total_bytes),
        "time": known_seconds(place.predicted_seconds),
    }


def _ruled_cells(run: RunPlan, training: Training) -> dict[str, str]:
    """What follows a rule of the spec and has no column of its own otherwise."""
    recipe, cells = run.recipe, {}
    if training.warmup_tokens is not None:
        cells["warm-up"] = str(recipe.warmup_steps)
    if training.weight_decay_half_life_tokens is not None:
        cells["decay"] = f"{recipe.weight_decay:.2g}"
    if training.beta2_half_life_tokens is not None:
        cells["beta2"] = f"{recipe.beta2:.4g}"
    if training.epsilon_reference is not None:
        cells["eps"] = f"{recipe.epsilon:.2g}"
    return cells


def _left_out(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Columns to do without, so that no number is cut at this width."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) + _GAP for name in rows[0]}
    left_out: list[str] = []
    for name in (each for each in _LEAST_TOLD_FIRST if each in widths):
        if sum(widths.values()) - _GAP <= width:
            break
        del widths[name]
        left_out.append(name)
    return left_out


def _trunk_words(sweep: SweepPlan) -> str:
    """What branching off trunks saves; empty where no run does."""
    branches = [run for run in sweep.runs if run.branch is not None]
    if not branches:
        return ""
    paid, separate = sum(run.flops * run.paid_share for run in sweep.runs), sum(run.flops for run in sweep.runs)
    trunks = [run for run in sweep.runs if run.keep_steps]
    return (
        f"{len(branches)} runs branch off {len(trunks)} {'trunk' if len(trunks) == 1 else 'trunks'}: "
        f"{format_flops(paid)} FLOPs are paid, {paid / sum(run.flops for run in trunks):.2f} times the trunks', where "
        f"separate runs cost {format_flops(separate)}; above are times from the start, the total is what is paid"
    )


def _communication_words(sweep: SweepPlan) -> str:
    """What the other type of communication would take; empty where nothing crosses between GPUs, or little changes."""
    from flopsfit_ds.plan.step_time import step_seconds

    hours = {"fp32": 0.0, "bf16": 0.0}
    for run in (run for run in sweep.runs if run.placement.strategy.num_gpus > 1):
        place, flops = run.placement, run.flops / (run.num_steps * run.global_batch_sequences)
        for kind in hours:
            strategy = replace(place.strategy, communication=kind)
            accumulation = place.gradient_accumulation_steps
            seconds = step_seconds(place.profile, strategy, accumulation, flops, sweep.cluster) * run.num_steps
            hours[kind] += seconds * strategy.num_gpus / 3600
    if sweep.spec.training.precision != "bf16" or hours["fp32"] <= hours["bf16"] * _NOTABLE:
        return ""
    return (
        f"placement.communication: on several GPUs runs take {hours['fp32']:.3g} GPU-hours in fp32 and "
        f"{hours['bf16']:.3g} in bf16; this plan is in {sweep.spec.placement.communication}"
    )


def _source_words(sweep: SweepPlan) -> str:
    """What the longest run takes of each source of a mixture."""
    drawn = sweep.corpus.drawn(max(run.num_tokens for run in sweep.runs))
    words = [
        f"{format_count(each.num_tokens)} of {each.source}"
        + ("" if each.repeats is None else f" ({each.repeats:.2g} times its {format_count(each.unique_tokens or 0)})")
        for each in drawn
    ]
    return f"data: the longest run takes {', '.join(words)} tokens"


def _total(sweep: SweepPlan) -> str:
    """What all runs take; no time where that of a run is not known."""
    paid = sum(run.flops * run.paid_share for run in sweep.runs)
    total = f"total {format_flops(paid)} FLOPs"
    cluster, makespan = sweep.cluster, sweep.makespan()
    if makespan is None:
        return total
    gpu_seconds = sum((run.paid_seconds or 0.0) * run.placement.strategy.num_gpus for run in sweep.runs)
    total += f", {gpu_seconds / 3600:.3g} GPU-hours"
    total += f"; the last run ends after {format_seconds(makespan.seconds)}, no schedule is shorter than "
    total += f"{format_seconds(makespan.lower_bound_seconds)} (all {cluster.num_gpus} busy: "
    total += f"{format_seconds(gpu_seconds / cluster.num_gpus)})"
    if cluster.price_per_gpu_hour is not None:
        total += f", {gpu_seconds / 3600 * cluster.price_per_gpu_hour:,.2f} at {cluster.price_per_gpu_hour:g} an hour"
    return total


def print_plan(sweep: SweepPlan) -> None:
    """A table of all runs, what they cost, and what the user should know; no time that nothing measured supports."""
    from rich.markup import escape
    from rich.table import Table

    from flopsfit_ds.plan.recipe.switches import arithmetic, compiles
    from flopsfit_ds.study.console import Console

    console = Console()
    cluster = sweep.cluster
    on_devices = any(run.placement.strategy.offload == "none" for run in sweep.runs)
    compiled = on_devices and compiles(sweep.spec, cluster.device_name)
    console.tell(
        f"[bold]{sweep.name}[/bold]: {len(sweep.runs)} runs on {cluster.num_gpus} x {cluster.device_name} "
        f"({format_bytes(cluster.device_memory_bytes)} each), {arithmetic(sweep.spec.training)}, "
        f"{'blocks compiled (memory is estimated without), ' if compiled else ''}data {escape(sweep.corpus.source)}",
        markup=True,
    )
    for note in sweep.corpus.notes:
        console.tell(f"data: {note}")
    if sweep.corpus.mixed:
        console.tell(_source_words(sweep))
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [_cells(run) | _ruled_cells(run, sweep.spec.training) for run in sweep.runs]
    if all(run.placement.predicted_seconds is None for run in sweep.runs):
        rows = [{name: cell for name, cell in row.items() if name != "time"} for row in rows]
    left_out = _left_out(rows, console.width)
    columns = [name for name in rows[0] if name not in left_out]
    for name in columns:
        table.add_column(name, justify="left" if name in ("run", "where") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    console.print(table)
    if left_out:
        console.tell(f"not shown: {', '.join(left_out)}; a wider terminal or --json shows all", style="dim")
    for run in sweep.runs:
        if run.placement.strategy.zero_stage or run.placement.strategy.num_gpus > 1:
            console.tell(f"  {run.run_id}  {run.placement.reason}", style="dim")
    for said in (_trunk_words(sweep), _communication_words(sweep)):
        if said:
            console.tell(said)
    for said in (_total(sweep), f"time: {sweep.time_source}" if sweep.time_source else ""):
        if said:
            console.tell(said)
    console.tell(
        f"batch: GPUs x micro-batch x accumulation, in sequences of {sweep.spec.model.context_length} tokens; "
        "a GPU: memory with its margin",
        style="dim",
    )
    for warning in sweep.warnings:
        console.warn(warning)
