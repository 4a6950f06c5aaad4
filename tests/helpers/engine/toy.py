"""A worker that trains nothing: its "loss" depends on every step, so that a step lost or done twice shows."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from flopsfit_ds.base.storage import atomic_write, read_json, write_json
from flopsfit_ds.engine.fork.server import Program
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.metrics import MetricsLog
from helpers.engine.clock import follow_clock

MODULES = ("torch.distributed", "torch._C._distributed_c10d", "helpers.engine.toy")
PROGRAM = Program("helpers.engine.toy:run_worker", MODULES)
SPEC = """
name: toy
output_root: {root}
model: {{vocab_size: 256, context_length: 32, head_dim: 8, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 2k}}
design: {{method: points, points: [{points}]}}
training: {{global_batch_tokens: 1024, learning_rates: [6e-3], precision: fp32}}
hardware: {{device: cpu, gpus_per_node: {slots}}}
placement: {{num_gpus: {num_gpus}}}
execution: {{max_attempts: 3, hang_timeout: 120}}
"""
NUM_STEPS = 20
CHECKPOINT_STEPS = 5
SLOW_SECONDS = 0.5
"""Which a slow rank takes longer for each step."""
FORGOTTEN = "step-5: by flopsfit-ds 9.9"
HELD_STEP = 7
"""After a checkpoint, and before the next: there toys wait for a test that does something to them in the middle."""


_LOCKS = []
"""Kept to the end, as tqdm keeps one from its first bar on."""


def undisturbed_loss() -> float:
    """What a toy run ends with, computed here step by step."""
    loss = 1.0
    for step in range(1, NUM_STEPS + 1):
        loss = (loss * 31 + step) % 1009
    return loss / 1000


def steps_trained_twice(folder: Path) -> int:
    """Steps of all toys of a sweep's folder that were trained again; of a run, those of the rank with most."""
    worst: dict[Path, int] = {}
    for path in folder.glob("runs/*/toy-steps.*.bin"):
        again = sum(max(0, times - 1) for times in path.read_bytes())
        worst[path.parent] = max(again, worst.get(path.parent, 0))
    return sum(worst.values())


@dataclass(frozen=True)
class ToyTask:
    """What a toy run does.

    Attributes:
        plan: The run.
        step_seconds: Length of a step.
        fault: What goes wrong: a name, the rank, and the attempts in which it does.
        fault_step: After which step.
        checkpoint_steps: Steps between checkpoints.
        max_micro_batch: A larger micro-batch runs out of memory.
        start_fails: In these attempts it breaks before it looks for a checkpoint.
        bad_device: There it breaks at once.
        forgets: In these attempts it does not go on from its checkpoint, and says so.
        held_until: A file for which it waits after step `HELD_STEP`, unless it is asked to stop.
    """

    plan: RunPlan
    step_seconds: float = 0.0
    fault: str = ""
    fault_rank: int = 0
    fault_attempts: int = 0
    fault_step: int = 3
    checkpoint_steps: int = CHECKPOINT_STEPS
    max_micro_batch: int = 10**9
    start_fails: range = range(0)
    bad_device: str | None = None
    forgets: range = range(0)
    held_until: str | None = None


def run_worker(order, task) -> int:
    from torch._C._distributed_c10d import TCPStore

    follow_clock()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _LOCKS.append(multiprocessing.RLock())
    stop = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    if order.attempt in task.start_fails:
        raise RuntimeError("CUDA error: no CUDA-capable device is detected")
    if task.bad_device is not None and os.environ.get("CUDA_VISIBLE_DEVICES") == task.bad_device:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    store = TCPStore(order.store_host, order.store_port, is_master=False, timeout=timedelta(seconds=120))
    folder = RunFolder(Path(order.run_folder))
    attempt = folder.attempt(order.attempt)
    state = folder.path / f"toy-checkpoint.{order.rank}.json"
    step, loss = json.loads(state.read_text()) if state.exists() else (0, 1.0)
    if order.attempt in task.forgets:
        step, loss = 0, 1.0
        store.set("restarted", f"begins at step 0: {FORGOTTEN}")
    store.set("start_step", str(step))
    start_step = step
    if order.micro_batch_size_per_gpu > task.max_micro_batch:
        write_json(attempt / f"error.{order.rank}.json", {"kind": "oom", "message": "OutOfMemoryError: too much"})
        return 76
    metrics = MetricsLog(folder.path, keep_steps=step, enabled=order.rank == 0)
    counts = os.open(folder.path / f"toy-steps.{order.rank}.bin", os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(counts).st_size == 0:
        os.write(counts, bytes(NUM_STEPS))
    while step < NUM_STEPS:
        time.sleep(task.step_seconds)
        os.pwrite(counts, bytes([os.pread(counts, 1, step)[0] + 1]), step)
        step += 1
        loss = (loss * 31 + step) % 1009
        store.set(f"heartbeat/{order.rank}", str(step))
        metrics.log(step, loss, 0.0, None, 0.0)
        if step == HELD_STEP and task.held_until is not None:
            _hold(store, order, Path(task.held_until), stop)
        if stop or step % task.checkpoint_steps == 0:
            metrics.flush()
            atomic_write(state, json.dumps([step, loss]))
            store.set("saved_step", str(step))
            store.set(f"saved/{order.attempt}/{order.rank}/{step}", "1")
        if stop:
            return 75
        if order.rank == task.fault_rank and order.attempt <= task.fault_attempts and step >= task.fault_step:
            _wait_for_the_others(store, order, step - step % task.checkpoint_steps, start_step)
            outcome = _go_wrong(task.fault, attempt, order.world_size)
            if outcome is not None:
                return outcome
    store.set(f"end/{order.rank}", "1")
    store.wait([f"end/{rank}" for rank in range(order.world_size)], timedelta(seconds=60))
    if order.rank == 0:
        outcome = {"status": "completed", "reason": None, "loss": loss / 1000, "loss_standard_error": 0.001}
        outcome |= {"loss_tokens": 100, "start_step": start_step, "observed": None, "versions": {}}
        write_json(attempt / "outcome.json", outcome)
    return 0


def _hold(store, order, until: Path, stop: list[int]) -> None:
    """Stay within a step, and say so, until a file is there or the run is asked to stop."""
    beats = 0
    while not stop and not until.exists():
        beats += 1
        store.set(f"heartbeat/{order.rank}", f"{HELD_STEP} ({beats})")
        time.sleep(0.05)


def _wait_for_the_others(store, order, saved_step: int, start_step: int) -> None:
    """As collectives keep real ranks: no rank is past a checkpoint before every rank has written it."""
    if saved_step > start_step:
        names = [f"saved/{order.attempt}/{rank}/{saved_step}" for rank in range(order.world_size)]
        store.wait(names, timedelta(seconds=60))


def _go_wrong(fault: str, attempt: Path, world_size: int) -> int | None:
    if fault == "raise":
        raise ValueError("the toy breaks")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "group":
        while len(notes := list(attempt.glob("process.*.json"))) < world_size:
            time.sleep(0.01)
        for pid in sorted((read_json(note)["pid"] for note in notes), key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)
    if fault == "slow":
        time.sleep(SLOW_SECONDS)
    if fault == "server":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    if fault == "exit":
        os._exit(13)
    if fault == "hang":
        time.sleep(3600)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "look":
        import torch

        names = [name for name in os.environ if name.startswith(("TORCHELASTIC_", "ACCELERATE_"))]
        sys.stdout.write(f"cuda initialised: {torch.cuda.is_initialized()}\n")
        sys.stdout.write(f"session leader: {os.getsid(0) == os.getpid()}\n")
        sys.stdout.write(f"launcher variables: {[n for n in names if n != 'TORCHELASTIC_USE_AGENT_STORE']}\n")
    if fault == "nan":
        content = {"status": "diverged", "reason": "the loss is nan", "loss": None, "loss_standard_error": None}
        write_json(
            attempt / "outcome.json", content | {"start_step": 0, "loss_tokens": None, "observed": None, "versions": {}}
        )
        return 0
    return None
