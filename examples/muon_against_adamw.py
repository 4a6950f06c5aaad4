"""Muon against AdamW on one set of points: a law for each, and how much compute the one saves over the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flopsfit_ds import build_plan, run_sweep
from flopsfit_ds.decide import compare_runs, read_sources
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.spec import validate_spec
from flopsfit_ds.study.steps import conclude_sweep

OPTIMIZERS: dict[str, dict[str, Any]] = {"adamw": {"name": "adamw"}, "muon": {"name": "muon"}}


def spec_of(name: str) -> dict[str, Any]:
    """Three sizes at three lengths, on the source of Python's own library; Muon's steps are as large as AdamW's."""
    return {
        "name": f"by-{name}",
        "model": {"vocab_size": 256, "context_length": 128, "head_dim": 16, "width_per_layer": 16},
        "data": {"source": "python-stdlib", "heldout_tokens": 32768},
        "design": {"method": "ladder", "num_params": ["15k", "30k", "60k"], "tokens_per_parameter": [8, 24, 72]},
        "training": {
            "global_batch_tokens": 1024,
            "learning_rates": [6e-3],
            "precision": "fp32",
            "optimizer": OPTIMIZERS[name],
        },
        "hardware": {"device": "cpu", "gpus_per_node": 2},
        "placement": {"zero_stages": [0], "num_gpus": [1]},
        "fit": {"law": "chinchilla-tied", "bootstrap_samples": 100},
    }


def plan_of(name: str) -> SweepPlan:
    """The same points under an optimiser."""
    return build_plan(validate_spec(spec_of(name), "example"))


def study() -> list[Path]:
    """Train and fit both; the folders of the sweeps."""
    folders = []
    for name in OPTIMIZERS:
        plan = plan_of(name)
        result = conclude_sweep(plan, run_sweep(plan))
        print(f"{name}: {result.answer()}")
        folders.append(plan.folder)
    return folders


if __name__ == "__main__":
    by_adamw, by_muon = (read_sources([folder]) for folder in study())
    found = compare_runs(by_muon, by_adamw, law="chinchilla-tied")
    for at in found.multipliers:
        span = f"{at.interval.low:.2f} to {at.interval.high:.2f}"
        print(f"{at.compute:.2g} FLOPs of AdamW are as good as {at.value:.2f} times that of Muon ({span})")
