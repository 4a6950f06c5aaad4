"""`retry`, `timeline`, and what `sweep --dry-run` shows: how runs are carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.units import format_bytes, format_seconds
from flopsfit_ds.cli.sweeping.sweep import ExecutorChoice, carry_out
from flopsfit_ds.plan.sweep_plan import SweepPlan

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A sweep's folder, such as outputs/quickstart.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def retry(  # pyright: ignore[reportUnusedFunction]
        folder: FolderArgument,
        slots: Annotated[int | None, typer.Option(min=1, help="Devices of this machine to use.")] = None,
        executor: Annotated[ExecutorChoice, typer.Option(help="As for `sweep`.")] = "auto",
    ) -> None:
        """Run the failed points of a sweep again; checkpoints are kept, earlier attempts no longer count."""
        from flopsfit_ds.engine import give_another_chance, read_plan
        from flopsfit_ds.records import SweepFolder

        _check(folder)
        plan = read_plan(folder)
        again = give_another_chance(SweepFolder(folder))
        print(f"{len(again)} failed runs of {len(plan.runs)} get another chance")
        for record in again:
            print(f"  {record.label}: {record.status} after {len(record.attempts)} attempts: {record.reason}")
        carry_out(plan, executor, slots)

    @app.command()
    def timeline(  # pyright: ignore[reportUnusedFunction]
        folder: FolderArgument,
        width: Annotated[int, typer.Option(min=20, max=400, help="Characters of the time axis.")] = 80,
    ) -> None:
        """Show which slot ran what when, from a sweep's events."""
        from flopsfit_ds.cli.sweeping.timeline import draw_timeline
        from flopsfit_ds.records import SweepFolder

        _check(folder)
        print(draw_timeline(SweepFolder(folder).events.read(), width))


def _check(folder: Path) -> None:
    if not (folder / "plan.json").exists():
        raise SweepFolderError(f"{folder}: no sweep's folder: it has no plan.json")


def show_dry_run(plan: SweepPlan, executor: str, slots: int | None) -> None:
    """Print the jobs that would be submitted, or the schedule on slots.

    Raises:
        LaunchError: The slots do not hold the plan.
    """
    if executor == "slurm":
        _show_submissions(plan)
        return
    from flopsfit_ds.engine.schedule.dry_run import expected_schedule

    schedule = expected_schedule(plan, slots)
    print(f"{len(plan.runs)} runs on {schedule.num_slots} slots, longest first where it matters:")
    for label, layout in schedule.starts:
        print(f"  {label}: {layout}")
    print(
        f"expected {format_seconds(schedule.makespan_seconds)}; no schedule is shorter than "
        f"{format_seconds(schedule.lower_bound_seconds)}"
    )


def _show_submissions(plan: SweepPlan) -> None:
    from flopsfit_ds.engine.slurm.submissions import plan_submissions

    submissions = plan_submissions(plan)
    execution = plan.spec.execution
    where = execution.slurm_partition or "the default partition"
    print(f"{len(submissions)} jobs for {len(plan.runs)} runs in {where}, at most {execution.slurm_max_jobs} at once:")
    for job in submissions:
        gpus = f"{job.gpus_per_node} GPUs, " if job.gpus_per_node else ""
        print(
            f"  {job.name}: {job.nodes} node{'s' if job.nodes > 1 else ''} x ({gpus}{job.cpus_per_node} CPUs, "
            f"{format_bytes(job.memory_bytes)}), {job.minutes} min: {', '.join(job.labels)}"
        )
