"""What `sweep --dry-run` shows: what would run where, or be submitted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.units import format_bytes, format_seconds
from flopsfit_ds.cli.prose import say

if TYPE_CHECKING:
    from flopsfit_ds.plan.sweep_plan import SweepPlan


def dry_run_json(plan: SweepPlan, executor: str, slots: int | None) -> dict[str, Any]:
    """The same as plain data: `jobs` of SLURM, `groups` of Ray, or the `schedule` on slots.

    Raises:
        LaunchError: The slots do not hold the plan.
    """
    if executor == "slurm":
        from flopsfit_ds.engine.slurm.submissions import plan_submissions

        return {"jobs": [_without_layout(asdict(job)) for job in plan_submissions(plan)]}
    if executor == "ray":
        from flopsfit_ds.engine.ray.resources import plan_groups

        groups = [asdict(group) for group in plan_groups(plan)]
        return {"groups": [{**group, "submission": _without_layout(group["submission"])} for group in groups]}
    from flopsfit_ds.engine.schedule.dry_run import expected_schedule

    return {"schedule": asdict(expected_schedule(plan, slots))}


def _without_layout(job: dict[str, Any]) -> dict[str, Any]:
    strategy = job.pop("layout")["strategy"]
    return {**job, "strategy": strategy}


def show_dry_run(plan: SweepPlan, executor: str, slots: int | None) -> None:
    """Print the jobs that would be submitted, or the schedule on slots.

    Raises:
        LaunchError: The slots do not hold the plan.
    """
    if executor == "slurm":
        _show_submissions(plan)
        return
    if executor == "ray":
        _show_groups(plan)
        return
    from flopsfit_ds.engine.schedule.dry_run import expected_schedule

    schedule = expected_schedule(plan, slots)
    say(f"{len(plan.runs)} runs on {schedule.num_slots} slots, longest first where it matters:")
    for label, layout in schedule.starts:
        say(f"  {label}: {layout}")
    if schedule.makespan_seconds is None or schedule.lower_bound_seconds is None:
        say(f"time: {plan.time_source}")
        return
    say(
        f"expected {format_seconds(schedule.makespan_seconds)}; no schedule is shorter than "
        f"{format_seconds(schedule.lower_bound_seconds)}"
    )


def _show_groups(plan: SweepPlan) -> None:
    from flopsfit_ds.engine.ray.resources import plan_groups

    groups = plan_groups(plan)
    say(f"{len(groups)} placement groups, one a run:")
    for group in groups:
        bundle = group.bundles[0]
        gpus = f"{bundle['GPU']:.0f} GPUs, " if "GPU" in bundle else ""
        say(
            f"  {group.label}: {len(group.bundles)} x ({gpus}{bundle['CPU']:.0f} CPUs, "
            f"{format_bytes(bundle['memory'])}), {group.strategy}, {group.submission.layout.strategy.label}"
        )


def _show_submissions(plan: SweepPlan) -> None:
    from flopsfit_ds.engine.slurm.submissions import plan_submissions

    submissions = plan_submissions(plan)
    execution = plan.spec.execution
    where = execution.slurm_partition or "the default partition"
    say(f"{len(submissions)} jobs for {len(plan.runs)} runs in {where}, at most {execution.slurm_max_jobs} at once:")
    for job in submissions:
        gpus = f"{job.gpus_per_node} GPUs, " if job.gpus_per_node else ""
        say(
            f"  {job.name}: {job.nodes} node{'s' if job.nodes > 1 else ''} x ({gpus}{job.cpus_per_node} CPUs, "
            f"{format_bytes(job.memory_bytes)}), {_limit(job.minutes)}: {', '.join(job.labels)}"
        )


def _limit(minutes: int | None) -> str:
    return "the partition's time limit (no run on this machine told the time)" if minutes is None else f"{minutes} min"
