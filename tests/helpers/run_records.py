"""A record of a run with every field filled."""

from __future__ import annotations

from flopsfit_ds.records import Attempt, Observed, Planned, RunRecord

PLANNED = Planned(1000, 800, 1000, 20000, 1.2e8, 4096, 1.5, 2, 2)
OBSERVED = Observed(
    1000, 1000, 20000, 1.2e8, None, 10**8, 2.0, 10000.0, None, 2, 2, 0, 1.5, {"peak_memory_bytes": "CPU"}
)
ATTEMPT = Attempt(1, "completed", None, ("0", "node1:3"), 2, 2, 4, 2, 0, 1e9, 3.0)
RECORD = RunRecord(
    run_id="0123456789ab",
    label="1e8-n1k",
    status="completed",
    reason=None,
    loss=1.25,
    loss_standard_error=0.01,
    loss_tokens=1024,
    compute_budget_flops=1e8,
    seed=0,
    learning_rate=1e-3,
    unique_tokens=10**6,
    precision="fp32",
    model={"family": "decoder", "num_layers": 2},
    planned=PLANNED,
    observed=OBSERVED,
    attempts=(ATTEMPT,),
    versions={"python": "3.11"},
    git_commit=None,
    host="node1",
    device="cpu",
    finished_at=1e9,
)
