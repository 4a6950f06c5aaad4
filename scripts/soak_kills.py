"""Kill whole sweeps at random moments, as a power cut would, until they are done: do they end in the same losses?

python scripts/soak_kills.py [100] [0]    kills, seed; prints a table; real training on two CPU slots, about 20 minutes

Each kill is SIGKILL of the driver, its servers and all workers at a moment drawn evenly over the time that the sweep
takes undisturbed; then the same command is started again. A sweep that is done is compared with one that was left in
peace: its losses must be the same to the last bit, and no step may be missing.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from flopsfit_ds.records import SweepFolder

SPEC = """
name: kills
output_root: {root}
model: {{vocab_size: 256, context_length: 64, head_dim: 8, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 8k}}
design: {{method: points, points: [{points}]}}
training: {{global_batch_tokens: 1024, learning_rates: [6e-3], precision: fp32, checkpoint_every: 1}}
hardware: {{device: cpu, gpus_per_node: 2}}
placement: {{num_gpus: {num_gpus}, zero_stages: {zero_stages}}}
"""
KINDS = {
    "3 runs of ZeRO-0 on 1 rank": {"tokens": (300_000, 400_000, 500_000), "num_gpus": "[1]", "zero_stages": "[0]"},
    "2 runs of ZeRO-2 on 2 ranks": {"tokens": (200_000, 300_000), "num_gpus": "[2]", "zero_stages": "[2]"},
    "2 runs of ZeRO-3 on 2 ranks": {"tokens": (100_000, 150_000), "num_gpus": "[2]", "zero_stages": "[3]"},
}
MOMENTS = ("before the first step", "in training", "while a checkpoint is written", "in evaluation, records, report")


def start(root: Path, name: str) -> subprocess.Popen[bytes]:
    """The sweep of a kind, in a folder."""
    root.mkdir(exist_ok=True)
    kind = KINDS[name]
    points = ", ".join(f"{{num_params: 25k, num_tokens: {count}}}" for count in kind["tokens"])
    spec = root / "spec.yaml"
    spec.write_text(SPEC.format(root=root, points=points, num_gpus=kind["num_gpus"], zero_stages=kind["zero_stages"]))
    log = (root / "log.txt").open("ab")
    command = [sys.executable, "-m", "flopsfit_ds.cli", "sweep", str(spec)]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def losses(root: Path) -> dict[str, float | None]:
    """What the runs of a folder ended with."""
    return {record.run_id: record.loss for record in SweepFolder(root / "kills").records()}


def kill_everything(driver: subprocess.Popen[bytes]) -> None:
    """The driver, its servers and all workers; it is stopped first, so that it sees none of the others end."""
    with suppress(psutil.NoSuchProcess):
        driver.send_signal(signal.SIGSTOP)
        for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    driver.wait()


def moment(root: Path, began: float) -> str:
    """What a sweep that has just been killed was about, from what it left on the disk."""
    runs = [SweepFolder(root / "kills").run(path.name) for path in root.glob("kills/runs/*")]
    if any(run.checkpoint.glob(".step-*.tmp") for run in runs if list(run.checkpoint.glob(".step-*.tmp"))):
        return MOMENTS[2]
    if runs and all(run.record.exists() for run in runs):
        return MOMENTS[3]
    written = [path.stat().st_mtime for run in runs for path in (run.metrics.path,) if path.exists()]
    return MOMENTS[1] if any(when > began for when in written) else MOMENTS[0]


def survive(name: str, expected: Mapping[str, float | None], span: float, draw: random.Random, most: int) -> Counter:
    """Kill a sweep at random moments until it is done, and compare it; how many kills hit which moment.

    Raises:
        RuntimeError: It failed, or ended in other losses.
    """
    hit: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        while True:
            began, driver = time.time(), start(root, name)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(draw.uniform(0, span) if sum(hit.values()) < most else None)
            if driver.returncode is not None:
                break
            kill_everything(driver)
            hit[moment(root, began)] += 1
        if driver.returncode:
            raise RuntimeError(f"exit code {driver.returncode}: {(root / 'log.txt').read_text()[-3000:]}")
        if losses(root) != expected:
            raise RuntimeError(f"other losses: {losses(root)} instead of {expected}")
        for run_id in expected:
            steps = [line["step"] for line in SweepFolder(root / "kills").run(run_id).metrics.read()]
            if steps != list(range(1, len(steps) + 1)):
                raise RuntimeError(f"{run_id}: its metrics are not one line a step")
    return hit


def undisturbed(name: str) -> tuple[dict[str, float | None], float]:
    """The losses of a sweep that is left in peace, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        if code := start(Path(folder), name).wait():
            raise RuntimeError(f"exit code {code}: {(Path(folder) / 'log.txt').read_text()[-3000:]}")
        return losses(Path(folder)), time.monotonic() - began


def main() -> None:
    """Kill so many times, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    draw, left = random.Random(arguments.seed), arguments.kills
    share = -(-arguments.kills // len(KINDS))  # of one sweep, so that a slow machine leaves some for every kind
    references = {name: undisturbed(name) for name in KINDS}
    hits: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    done: Counter[str] = Counter()
    while left > 0:
        for name in KINDS:
            if left > 0:
                hit = survive(name, *references[name], draw, min(left, share))
                hits[name] += hit
                done[name] += 1
                left -= sum(hit.values())
                print(f"  {arguments.kills - left} kills so far", file=sys.stderr, flush=True)
    print("| sweep | kills | " + " | ".join(MOMENTS) + " | sweeps done | equal to the bit |")
    print("|---|---|" + "---|" * (len(MOMENTS) + 2))
    for name, hit in hits.items():
        cells = [sum(hit.values()), *(hit[each] for each in MOMENTS), done[name], done[name]]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
