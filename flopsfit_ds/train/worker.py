"""One rank of one attempt, from order to exit code; rank 0 writes the outcome."""

from __future__ import annotations

import faulthandler
import logging
import math
import resource
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from flopsfit_ds.base.errors import SweepFolderError, describe_error
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.model.flops import model_flops_utilisation
from flopsfit_ds.plan.recipe.switches import NOTHING_TO_GAIN
from flopsfit_ds.records import Observed, RunFolder
from flopsfit_ds.train.checkpoint.resume import ResumePoint, agree_on_resume_point, trust_of
from flopsfit_ds.train.data.ahead import BatchesAhead, built_ahead
from flopsfit_ds.train.data.mixture import distinct_samples, seen_of_sources
from flopsfit_ds.train.evaluate import HeldoutLoss, check_evaluation, heldout_loss
from flopsfit_ds.train.loop import DivergedError, PreemptedError, Progress, train
from flopsfit_ds.train.model.compiled import keep_compiled_code_in
from flopsfit_ds.train.order import (
    EXIT_FAILED,
    EXIT_OUT_OF_MEMORY,
    EXIT_OUTCOME_WRITTEN,
    EXIT_PREEMPTED,
    WorkerOrder,
    WorkerTask,
)
from flopsfit_ds.train.session import Session, collective_timeout, is_out_of_memory, open_session
from flopsfit_ds.train.versions import library_versions

_log = logging.getLogger(__name__)
_HEARTBEAT_EVERY_SECONDS = 0.2
"""More often than the engine looks (`slot_executor.HEARTBEAT_SECONDS`), so that no look finds an old step."""
_PULSE_EVERY_SECONDS = 1.0  # a time limit on silence is minutes; each is a message to the driver's node


class Heartbeat:
    """Tells the engine, through the rendezvous store, how far this rank is.

    Attributes:
        store: That store.
    """

    def __init__(self, order: WorkerOrder) -> None:
        self.store = TCPStore(order.store_host, order.store_port, is_master=False, timeout=timedelta(seconds=60))
        self._key = f"heartbeat/{order.rank}"
        self._last = 0.0
        self._last_step = 0.0
        self._pulses = 0

    def __call__(self, message: str) -> None:
        """Send a step number or a phase; step numbers at most a few times a second."""
        now = time.monotonic()
        if message.isdigit():
            if now - self._last_step < _HEARTBEAT_EVERY_SECONDS:
                return
            self._last_step = now
        self.store.set(self._key, message)
        self._last = now

    def pulse(self, phase: str) -> None:
        """Say that a phase, or the step after so many, goes on; at most once a second."""
        now = time.monotonic()
        if now - self._last >= _PULSE_EVERY_SECONDS:
            self._pulses += 1
            self._last = now
            self.store.set(self._key, f"{phase} ({self._pulses})")

    def resumed(self, step: int, restarted: str | None) -> None:
        """Say from which step on this attempt trains, that it does from now on, and why not from a later one."""
        if restarted is not None:
            self.store.set("restarted", restarted)
        self.store.set("start_step", str(step))
        self(str(step))

    def saved(self, step: int) -> None:
        """Say that the checkpoint of a step is whole."""
        self.store.set("saved_step", str(step))


def run_worker(order: WorkerOrder, task: WorkerTask) -> int:
    """Train one rank's share of a run, in a process of its own whose environment the engine has set.

    Returns:
        The exit code: an outcome was written, preempted, out of memory, or failed (the reason in `error.<rank>.json`).
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # at each collective
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    torch.set_num_threads(order.num_threads)
    attempt_folder = RunFolder(Path(order.run_folder)).attempt(order.attempt)
    heartbeat = Heartbeat(order)
    try:
        heartbeat("start")
        start = agree_on_resume_point(
            order,
            task.plan.run_id,
            heartbeat.store,
            heartbeat.pulse,
            trust_of(task),
            task.plan.branch,
            convertible=task.plan.recipe.optimizer is None or task.plan.recipe.optimizer.name == "adamw",
        )
        compiled = task.compiled and order.offload == "none"
        if compiled and task.sweep_folder is not None:
            keep_compiled_code_in(Path(task.sweep_folder), order.num_threads)
        with built_ahead(order, task, 0 if start.saved is None else start.saved.step) as ahead:
            session = open_session(
                order,
                task.plan,
                task.workload,
                load_universal=bool(start.universal),
                compiled=compiled,
                timeout=collective_timeout(task.hang_timeout_seconds),
            )
            check_evaluation(session, task.workload, order.micro_batch_size_per_gpu)
            return _train_and_measure(session, order, task, start, attempt_folder, heartbeat, stop, ahead)
    except PreemptedError as preempted:
        _log.warning("%s", preempted)
        return EXIT_PREEMPTED
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        content = describe_error(error) | ({"kind": "oom"} if out_of_memory else {})
        _log.error("%s", content["traceback"])
        with suppress(SweepFolderError):  # the disk may be the very thing that failed; log and exit code remain
            write_json(attempt_folder / f"error.{order.rank}.json", content)
        return EXIT_OUT_OF_MEMORY if out_of_memory else EXIT_FAILED


def _train_and_measure(
    session: Session,
    order: WorkerOrder,
    task: WorkerTask,
    start: ResumePoint,
    attempt_folder: Path,
    heartbeat: Heartbeat,
    stop: list[int],
    ahead: BatchesAhead | None,
) -> int:
    loss = None
    sets: dict[str, dict[str, float | None]] = {}
    try:
        progress = train(
            session, order, task, start,
            heartbeat=heartbeat, pulse=heartbeat.pulse, resumed=heartbeat.resumed, saved=heartbeat.saved,
            stop_requested=lambda: bool(stop), ahead=ahead,
        )  # fmt: skip
        heartbeat("eval")
        loss = heldout_loss(session, task.workload, order.micro_batch_size_per_gpu, heartbeat.pulse)
        status, reason = "completed", None
        if not math.isfinite(loss.mean):
            status, reason = "diverged", f"the held-out loss is {loss.mean}"
        for further in task.heldout_sets:
            found = heldout_loss(session, further.workload, order.micro_batch_size_per_gpu, heartbeat.pulse)
            sets[further.name] = _told(found, further.bytes_per_token)
    except DivergedError as diverged:
        status, reason, progress = "diverged", str(diverged), diverged.progress
    task.check_files()
    observed = _observe(session, order, task, progress)
    if order.rank == 0:
        finite = loss if status == "completed" else None
        write_json(
            attempt_folder / "outcome.json",
            {
                "status": status,
                "reason": reason,
                **_told(finite, task.bytes_per_token),
                "heldout": sets if finite else {},
                "start_step": progress.start_step,
                "restarted": progress.restarted,
                **_seen(task, progress.step),
                "observed": asdict(observed),
                "versions": library_versions(),
            },
        )
    heartbeat("end")
    if order.world_size > 1:
        dist.barrier()
    return EXIT_OUTCOME_WRITTEN


def _seen(task: WorkerTask, num_steps: int) -> dict[str, Any]:
    """Tokens that there are, and of a mixture those taken of each source in so many steps."""
    run, workload = task.plan, task.workload
    batch, context = run.global_batch_sequences, run.context_length
    samples = distinct_samples(workload.mixture, run.num_steps * batch, workload.num_training_samples, run.seed)
    return {
        "unique_tokens": samples * context,
        "sources": seen_of_sources(workload.mixture, num_steps * batch, run.seed, context),
    }


def _told(loss: HeldoutLoss | None, bytes_per_token: float | None) -> dict[str, float | None]:
    """A loss as an outcome holds it; one that is no number is none."""
    if loss is None or not math.isfinite(loss.mean):
        return {"loss": None, "loss_standard_error": None, "loss_tokens": None, "bits_per_byte": None}
    return {
        "loss": loss.mean,
        "loss_standard_error": loss.standard_error,
        "loss_tokens": loss.num_predictions,
        "bits_per_byte": None if bytes_per_token is None else loss.mean / math.log(2) / bytes_per_token,
    }


def _observe(session: Session, order: WorkerOrder, task: WorkerTask, progress: Progress) -> Observed:
    """Measurements of all ranks; a collective."""
    run, missing = task.plan, {}
    host_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device_memory = torch.cuda.max_memory_allocated() if order.device_index is not None else 0
    peaks = torch.tensor([device_memory, host_memory], dtype=torch.float64, device=session.device)
    if order.world_size > 1:
        dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    device_peak, host_peak = (int(value) for value in peaks.tolist())
    if order.device_index is None:
        missing["peak_memory_bytes"] = "the CPU's allocator keeps no statistics; see peak_host_memory_bytes"
    if progress.smoothed_loss is None:
        missing["train_loss"] = missing["waited_share"] = (
            "this attempt found the training done, or ended in its first step"
        )
    if session.compiled is not None and session.compiled.failure is not None:
        missing["compiled"] = session.compiled.failure
    elif task.compiled and order.offload != "none":
        missing["compiled"] = NOTHING_TO_GAIN
    num_tokens = progress.step * run.global_batch_sequences * run.context_length
    flops = run.flops / run.num_tokens * num_tokens
    utilisation = None
    if task.peak_flops is None:
        missing["model_flops_utilisation"] = "the device's peak FLOP/s is not known"
    elif order.device_index is None:
        missing["model_flops_utilisation"] = "a CPU slot's peak FLOP/s is nominal"
    else:
        utilisation = model_flops_utilisation(flops, progress.seconds, order.world_size, task.peak_flops)
    return Observed(
        num_params_total=session.num_params_total,
        num_params_trainable=session.num_params_trainable,
        num_tokens=num_tokens,
        flops=flops,
        peak_memory_bytes=device_peak if order.device_index is not None else None,
        peak_host_memory_bytes=host_peak,
        seconds=progress.seconds,
        tokens_per_second=num_tokens / progress.seconds,
        model_flops_utilisation=utilisation,
        zero_stage=session.engine.zero_optimization_stage(),
        world_size=session.accelerator.num_processes,
        skipped_steps=session.engine.skipped_steps,
        train_loss=progress.smoothed_loss,
        missing=missing,
        waited_share=progress.waited_share,
        compiled=None if "compiled" in missing else session.compiled is not None,
    )
