"""CPU seconds of the commands that read a folder of finished runs: a start with nothing to do, report, fit, status.

    python scripts/bench_folder.py [--runs 1200] [--steps 200] [--points 2000] [--folder FOLDER] [--other PYTHON]

The runs are of a real plan, with records and metrics that follow a law; nothing is trained. CPU seconds are of a
command and its children: they hold on a busy machine, where wall time does not. Each command is run twice: the first
time may fill caches that the second reads.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from flopsfit_ds.engine.disk.folder import write_plan
from flopsfit_ds.engine.disk.results import records_csv
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan, build_plan
from flopsfit_ds.records import Attempt, Observed, Planned, RunRecord, SweepFolder
from flopsfit_ds.spec import parse_spec

SIZES_PER_BUDGET = 20


def spec_of(root: Path, num_runs: int) -> str:
    """An isoFLOP sweep of so many byte-level models for a CPU."""
    num_budgets = max(1, round(num_runs / SIZES_PER_BUDGET))
    budgets = [1e16 * 1e3 ** (number / num_budgets) for number in range(num_budgets)]
    return yaml.safe_dump(
        {
            "name": "finished",
            "output_root": str(root),
            "model": {"context_length": 128, "head_dim": 16, "width_per_layer": 16},
            "data": {"source": "python-stdlib", "heldout_tokens": 8192},
            "design": {"method": "isoflop", "compute_budgets": budgets, "sizes_per_budget": SIZES_PER_BUDGET},
            "training": {"global_batch_tokens": 1024, "precision": "fp32"},
            "hardware": {"device": "cpu", "gpus_per_node": 2},
            "execution": {"simulate_memory": False},
        }
    )


def loss_of(run: RunPlan, draw: random.Random) -> float:
    """A planted law, and noise of .3%."""
    return (0.9 + 80 / run.num_params_total**0.42 + 60 / run.num_tokens**0.38) * math.exp(draw.gauss(0, 0.003))


def record_of(run: RunPlan, loss: float) -> RunRecord:
    """What a run that went as planned leaves behind."""
    n, d, strategy = run.num_params_total, run.num_tokens, run.placement.strategy
    planned = Planned(
        n, run.num_params_non_embedding, n, d, run.flops, 2**28, 60.0, strategy.zero_stage, strategy.num_gpus
    )
    missing = {"peak_memory_bytes": "no CUDA device", "model_flops_utilisation": "the peak is not known"}
    observed = Observed(n, n, d, run.flops, None, 2**30, 60.0, d / 60, None, 0, strategy.num_gpus, 0, loss, missing)
    attempt = Attempt(1, "completed", None, ("0",), 0, 1, 8, 1, 0, 1.7e9, 62.0)
    return RunRecord(
        run_id=run.run_id, label=run.label, status="completed", reason=None, loss=loss, loss_standard_error=0.002,
        loss_tokens=8192, compute_budget_flops=run.compute_budget_flops, seed=run.seed,
        learning_rate=run.recipe.learning_rate, unique_tokens=11_000_000, precision="fp32",
        model={"family": "decoder"}, planned=planned, observed=observed,
        attempts=(attempt,), versions={"python": "3.11", "torch": "2.13.0"}, git_commit=None, host="node1",
        device="cpu", finished_at=1.75e9,
    )  # fmt: skip


def finish(plan: SweepPlan, num_steps: int) -> SweepFolder:
    """Write the folder of a sweep whose runs have all ended, with so many lines of metrics each."""
    draw, folder, records = random.Random(0), SweepFolder(plan.folder), []
    folder.prepare()
    write_plan(plan, folder)
    for run in plan.runs:
        loss, run_folder = loss_of(run, draw), folder.run(run.run_id)
        records.append(record_of(run, loss))
        run_folder.write_record(records[-1])
        run_folder.metrics.extend(
            [
                {
                    "step": k,
                    "loss": loss * (1 + k**-0.5),
                    "learning_rate": 1e-3,
                    "gradient_norm": 1.0,
                    "time": 1.7e9 + k,
                }
                for k in range(1, num_steps + 1)
            ]
        )
    folder.results.write_text(records_csv(records))
    return folder


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a command and its children.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line a command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=200, help="lines of metrics a run")
    parser.add_argument("--points", type=int, default=2000, help="of the plan that is timed")
    parser.add_argument("--folder", type=Path, help="where to keep the runs; made if it is not there")
    parser.add_argument("--other", type=Path, help="Python of an earlier build's environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        spec, large = root / "spec.yaml", root / "large.yaml"
        spec.write_text(spec_of(root, options.runs))
        large.write_text(spec_of(root / "large", options.points))
        if not (root / "finished").exists():
            finish(build_plan(parse_spec(spec.read_text())), options.steps)
        folder = str(root / "finished")
        commands = {
            f"plan of {options.points}": ["plan", str(large), "--json"],
            "start": ["sweep", str(spec)],
            "report": ["report", folder],
            "fit": ["fit", folder],
            "status": ["status", folder],
        }
        builds = {"this": sys.executable} | ({} if options.other is None else {"other": str(options.other)})
        print(f"{options.runs} finished runs, CPU seconds the first and the second time")
        for name, words in commands.items():
            cells = []
            for build, python in builds.items():
                took = [cpu_seconds([python, "-m", "flopsfit_ds.cli", *words]) for _ in range(2)]
                cells.append(f"{build} {took[0]:6.2f} {took[1]:6.2f}")
            print(f"  {name:14s} {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
