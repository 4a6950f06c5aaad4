"""From what workers wrote to the record of a run."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import Attempt, HeldoutLoss, Observed, Planned, RunRecord, SourceTokens, Status


@dataclass(frozen=True)
class Recorder:
    """Makes records of one sweep's runs.

    Attributes:
        plan: The sweep.
        git_commit: Of the folder it was started in; None outside a repository.
    """

    plan: SweepPlan
    git_commit: str | None

    def measured(self, run: RunPlan, outcome: dict[str, Any], attempts: Sequence[Attempt]) -> RunRecord:
        """The record of a run whose workers wrote an outcome."""
        return self._record(run, outcome["status"], outcome["reason"], outcome, attempts)

    def given_up(self, run: RunPlan, status: Status, reason: str | None, attempts: Sequence[Attempt]) -> RunRecord:
        """The record of a run that never measured a loss."""
        return self._record(run, status, reason, {}, attempts)

    def _record(
        self,
        run: RunPlan,
        status: Status,
        reason: str | None,
        outcome: dict[str, Any],
        attempts: Sequence[Attempt],
    ) -> RunRecord:
        observed = outcome.get("observed")
        slots = attempts[-1].slots if attempts else ()
        host = slots[0].rpartition(":")[0] if slots else ""
        return RunRecord(
            run_id=run.run_id,
            label=run.label,
            status=status,
            reason=reason,
            loss=outcome.get("loss"),
            loss_standard_error=outcome.get("loss_standard_error"),
            loss_tokens=outcome.get("loss_tokens"),
            compute_budget_flops=run.compute_budget_flops,
            seed=run.seed,
            learning_rate=run.recipe.learning_rate,
            unique_tokens=run.unique_tokens if run.unique_tokens is not None else outcome.get("unique_tokens"),
            precision=run.recipe.precision,
            model=run.to_json_dict()["model"],
            planned=_planned(run),
            observed=Observed(**observed) if observed else None,
            attempts=tuple(attempts),
            versions=outcome.get("versions", {}),
            git_commit=self.git_commit,
            host=host or socket.gethostname(),
            device=self.plan.cluster.device_name,
            finished_at=time.time(),
            layout_held=run.layout_held or None,
            data=self.plan.corpus.notes,
            trunk=run.branch.trunk if run.branch is not None else None,
            bits_per_byte=outcome.get("bits_per_byte"),
            heldout={name: HeldoutLoss(**loss) for name, loss in outcome.get("heldout", {}).items()},
            sources={
                name: SourceTokens(**seen, repeats=seen["num_tokens"] / seen["unique_tokens"])
                for name, seen in outcome.get("sources", {}).items()
            },
        )


def _planned(run: RunPlan) -> Planned:
    placement = run.placement
    return Planned(
        num_params_total=run.num_params_total,
        num_params_non_embedding=run.num_params_non_embedding,
        num_params_trainable=run.num_params_trainable,
        num_tokens=run.num_tokens,
        flops=run.flops,
        peak_memory_bytes=placement.memory.peak_allocated_bytes,
        seconds=placement.predicted_seconds,
        zero_stage=placement.strategy.zero_stage,
        world_size=placement.strategy.num_gpus,
        num_params_active=run.num_params_active,
        num_params_matrices=run.num_params_matrices,
        flops_source=run.flops_source,
    )


def git_commit(folder: Path) -> str | None:
    """Commit that a folder's repository is at; None outside one, or without git."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
