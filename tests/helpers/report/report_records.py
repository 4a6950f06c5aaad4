"""Records of sweeps that follow a known law."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import Attempt, Observed, Planned, RunRecord

E, A, B, ALPHA, BETA = 0.9, 80.0, 60.0, 0.42, 0.38
NO_CUDA = "no CUDA device: host memory is measured instead"


def law(num_params: float, num_tokens: float) -> float:
    return E + A / num_params**ALPHA + B / num_tokens**BETA


def optimum(compute: float) -> float:
    """The true N* at 6 N D = compute."""
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (compute / 6) ** (BETA / (ALPHA + BETA))


def record(
    num_params: float,
    num_tokens: float,
    budget: float | None,
    *,
    noise: float = 0.0,
    cpu: bool = False,
    label: str | None = None,
    learning_rate: float = 4e-3,
) -> RunRecord:
    n, d = round(num_params), round(num_tokens)
    flops = 6.0 * n * d
    loss = law(n, d) * math.exp(noise)
    memory = 16 * n + 2**26
    seconds = flops / 2e10
    attempt = Attempt(1, "completed", None, ("0",), 0, 1, 8, 1, 0, 1.7e9, seconds + 2.0)
    return RunRecord(
        run_id=f"{abs(hash((n, d, learning_rate))) % 16**12:012x}",
        label=label or f"{budget or flops:.0e}-n{n}-d{d}",
        status="completed",
        reason=None,
        loss=loss,
        loss_standard_error=0.002,
        loss_tokens=65536,
        compute_budget_flops=budget,
        seed=0,
        learning_rate=learning_rate,
        unique_tokens=11_000_000,
        precision="fp32",
        model={"family": "decoder", "num_layers": 4, "width": 64},
        planned=Planned(n, round(0.9 * n), n, d, flops, memory, seconds * 1.2, 0, 1),
        observed=Observed(
            num_params_total=n,
            num_params_trainable=n,
            num_tokens=d,
            flops=flops,
            peak_memory_bytes=None if cpu else round(memory * 1.031),
            peak_host_memory_bytes=memory * 4,
            seconds=seconds,
            tokens_per_second=d / seconds,
            model_flops_utilisation=None if cpu else 0.31,
            zero_stage=0,
            world_size=1,
            skipped_steps=0,
            train_loss=loss * 0.99,
            missing={"peak_memory_bytes": NO_CUDA, "model_flops_utilisation": "the peak is not known"} if cpu else {},
        ),
        attempts=(attempt,),
        versions={"python": "3.11.2", "torch": "2.13.0", "deepspeed": "0.19.8"},
        git_commit="059cae5aa",
        host="node1",
        device="cpu" if cpu else "NVIDIA H100",
        finished_at=1.75e9,
    )


def isoflop_sweep(
    budgets: Iterable[float] = (1e12, 3e12, 1e13, 3e13), sizes: int = 6, *, shift: float = 1.0, cpu: bool = False
) -> list[RunRecord]:
    """A valley a budget about the true optimum; `shift` moves the sizes, so that the minimum falls off their edge."""
    rng = np.random.default_rng(7)
    found = []
    for budget in budgets:
        for size in np.geomspace(optimum(budget) / 5, optimum(budget) * 5, sizes) * shift:
            found.append(record(size, budget / 6 / size, budget, noise=0.003 * rng.standard_normal(), cpu=cpu))
    return found


def ladder_sweep() -> list[RunRecord]:
    rng = np.random.default_rng(3)
    return [
        record(size, size * ratio, None, noise=0.002 * rng.standard_normal())
        for size in (2e4, 5.3e4, 1.4e5, 3.7e5)
        for ratio in (7, 17, 41, 97)
    ]


def of_plan(plan: SweepPlan) -> list[RunRecord]:
    """What the runs of a plan would have found under the law."""
    rng = np.random.default_rng(11)
    found = []
    for run in plan.runs:
        n, d = run.num_params_total, run.num_tokens
        made = record(n, d, run.compute_budget_flops, noise=0.002 * rng.standard_normal(), label=run.label)
        assert made.observed is not None
        found.append(
            replace(
                made,
                run_id=run.run_id,
                planned=replace(made.planned, flops=run.flops),
                observed=replace(made.observed, flops=run.flops),
            )
        )
    return found


def diverged(finished: RunRecord, reason: str = "loss is nan at step 312") -> RunRecord:
    tries = (
        replace(finished.attempts[0], outcome="killed", reason="signal 9", start_step=None),
        replace(finished.attempts[0], number=2, outcome="diverged", reason=reason),
    )
    return replace(
        finished, status="diverged", reason=reason, loss=None, loss_standard_error=None, observed=None, attempts=tries
    )
