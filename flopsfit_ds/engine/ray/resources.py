"""What is asked of Ray for a run: a bundle a node, with the GPUs, cores and host memory that the plan predicts."""

from __future__ import annotations

from dataclasses import dataclass

from flopsfit_ds.engine.slurm.submissions import Submission, plan_submissions
from flopsfit_ds.plan.sweep_plan import SweepPlan


@dataclass(frozen=True)
class Group:
    """A placement group.

    Attributes:
        name: For people.
        run_id: The run.
        label: The run's.
        bundles: One a node.
        strategy: `STRICT_PACK` within a node, `PACK` across.
        slots_per_node: Devices of each.
        submission: The plan's own words for it.
    """

    name: str
    run_id: str
    label: str
    bundles: tuple[dict[str, float], ...]
    strategy: str
    slots_per_node: int
    submission: Submission


def plan_groups(plan: SweepPlan, run_ids: tuple[str, ...] | None = None) -> tuple[Group, ...]:
    """The placement groups of a sweep's runs, one each, in the plan's order.

    Args:
        plan: The sweep.
        run_ids: Runs to be carried out; all of them without it.
    """
    chosen = [run.run_id for run in plan.runs] if run_ids is None else run_ids
    return tuple(_group(plan_submissions(plan, [run_id])[0]) for run_id in chosen)


def _group(submission: Submission) -> Group:
    bundle = {"CPU": float(submission.cpus_per_node), "memory": float(submission.memory_bytes)}
    if submission.gpus_per_node:
        bundle["GPU"] = float(submission.gpus_per_node)
    return Group(
        name=submission.name,
        run_id=submission.run_ids[0],
        label=submission.labels[0],
        bundles=(bundle,) * submission.nodes,
        strategy="STRICT_PACK" if submission.nodes == 1 else "PACK",
        slots_per_node=submission.slots_per_node,
        submission=submission,
    )
