"""Wall time of the commands that answer at once, beside a Python process that only imports torch, in the same run.

    python scripts/bench_plan.py

The rival is the least that any planner with torch in it pays before its first line. Each command is a fresh process,
start of Python included; the fastest of several counts, for others may share the machine.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
SWEEPS = ((100, 1), (100, 64), (1000, 64))
"""Points, and nodes of 8 GPUs: more nodes, more layouts to compare."""
ISOFLOP_SIZES = 20


def write_spec(folder: Path, num_points: int, num_nodes: int) -> Path:
    """An isoFLOP sweep of so many points, from 1e18 FLOPs to what so many nodes hold."""
    num_budgets = num_points // ISOFLOP_SIZES
    largest = 1e22 if num_nodes > 1 else 3e20
    budgets = [1e18 * (largest / 1e18) ** (number / num_budgets) for number in range(num_budgets)]
    design = {"method": "isoflop", "compute_budgets": budgets, "sizes_per_budget": ISOFLOP_SIZES}
    path = folder / f"points_{num_points}_nodes_{num_nodes}.yaml"
    hardware = {"device": "H100-SXM", "num_nodes": num_nodes}
    path.write_text(json.dumps({"name": path.stem, "design": design, "hardware": hardware}))  # JSON is YAML
    return path


def fastest_seconds(arguments: list[str]) -> float:
    """Wall seconds of a fresh Python, the fastest of several.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    """Print the table."""
    rival = fastest_seconds(["-c", "import torch"])
    print(f"{'command':34} {'points':>6} {'GPUs':>5} {'seconds':>8} {'of importing torch':>19}")
    print(f"{'python -c import torch':34} {'':>6} {'':>5} {rival:8.2f} {1:18.2f}x")
    with tempfile.TemporaryDirectory() as folder:
        for num_points, num_nodes in SWEEPS:
            spec = write_spec(Path(folder), num_points, num_nodes)
            for command in (["plan", str(spec), "--json"], ["estimate-memory", str(spec), "--quick", "--json"]):
                seconds = fastest_seconds(["-m", "flopsfit_ds.cli.main", *command])
                name = " ".join([command[0], *(part for part in command[2:] if part != "--json")])
                print(f"{name:34} {num_points:6} {8 * num_nodes:5} {seconds:8.2f} {seconds / rival:18.2f}x")


if __name__ == "__main__":
    main()
