"""A worker that says what it is told to say, when it is told to."""

from __future__ import annotations

import faulthandler
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.fork.server import Program
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.order import EXIT_PREEMPTED

MODULES = ("torch.distributed", "torch._C._distributed_c10d", "helpers.engine.toy_phases")
PROGRAM = Program("helpers.engine.toy_phases:run_worker", MODULES)


@dataclass(frozen=True)
class PhasesTask:
    """What a run says.

    Attributes:
        plan: The run.
        beats: Each heartbeat, and the seconds after it; asked to stop, it writes a checkpoint after those.
    """

    plan: RunPlan
    beats: tuple[tuple[str, float], ...]


def run_worker(order, task) -> int:
    from torch._C._distributed_c10d import TCPStore

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    store = TCPStore(order.store_host, order.store_port, is_master=False, timeout=timedelta(seconds=120))
    store.set("start_step", "0")
    stop = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    for beat, seconds in task.beats:
        store.set(f"heartbeat/{order.rank}", beat)
        time.sleep(seconds)
        if stop:
            store.set("saved_step", beat)
            return EXIT_PREEMPTED
    outcome = {"status": "completed", "reason": None, "loss": 1.0, "loss_standard_error": 0.1, "loss_tokens": 100}
    outcome |= {"start_step": 0, "observed": None, "versions": {}}
    write_json(RunFolder(Path(order.run_folder)).attempt(order.attempt) / "outcome.json", outcome)
    return 0


def never_end(order, task) -> int:
    time.sleep(3600)
    return 0
