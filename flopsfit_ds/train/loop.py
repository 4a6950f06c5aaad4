"""The training loop of one point, readable from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from flopsfit_ds.records import OWN_FOLDER, RunFolder
from flopsfit_ds.train.checkpoint.files import (
    TAG,
    Pulse,
    SavedState,
    commit_checkpoint,
    shortage,
    state_bytes,
    temporary_folder,
)
from flopsfit_ds.train.checkpoint.resume import ResumePoint, load, trust_of
from flopsfit_ds.train.checkpoint.universal import client_state
from flopsfit_ds.train.data.ahead import BatchesAhead
from flopsfit_ds.train.data.outputs import to_device
from flopsfit_ds.train.data.sampling import samples_of_run, share_of_rank
from flopsfit_ds.train.data.weighting import weighted_batches, weighted_loss
from flopsfit_ds.train.metrics import MetricsLog, Waiting
from flopsfit_ds.train.order import WorkerOrder, WorkerTask
from flopsfit_ds.train.schedule import learning_rate_at
from flopsfit_ds.train.seeding import seed_everything
from flopsfit_ds.train.session import Session
from flopsfit_ds.train.versions import versions

_log = logging.getLogger(__name__)
_CHECKPOINT_MARGIN_BYTES = 2**20
"""For what lies in a checkpoint beside the states: names, shapes, the manifest."""
_LAST_PATIENCE = 0.1
"""Of the time between checkpoints: so much work is worth one before the evaluation."""
_SMOOTHING_STEPS = 20
"""Steps that a single wild batch must not decide: its share is a twentieth."""
_DIVERGED_FACTOR = 2.0
"""Over the first step's loss: random weights are about as good as chance, and twice that is far worse than chance."""


class DivergedError(Exception):
    """The loss is not finite, or has left for good; the point is over.

    Attributes:
        progress: How far the run was.
    """

    def __init__(self, message: str, progress: Progress) -> None:
        super().__init__(message)
        self.progress = progress


class PreemptedError(Exception):
    """The run was asked to stop; a checkpoint is written, where there was room."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        start_step: Steps that were done when this attempt began.
        seconds: Time of the training loop up to here, over all attempts.
        first_loss: Training loss of the first step; None before it.
        smoothed_loss: Moving average of the training loss, of this attempt.
        waited_share: Of this attempt's time, waiting for samples; None before its first step.
        restarted: Why the newest checkpoint was not used; None where there was none, or where it was.
    """

    step: int
    start_step: int
    seconds: float
    first_loss: float | None = None
    smoothed_loss: float | None = None
    waited_share: float | None = None
    restarted: str | None = None


def train(
    session: Session,
    order: WorkerOrder,
    task: WorkerTask,
    start: ResumePoint,
    *,
    heartbeat: Callable[[str], None],
    pulse: Pulse,
    resumed: Callable[[int, str | None], None],
    saved: Callable[[int], None],
    stop_requested: Callable[[], bool],
    ahead: BatchesAhead | None = None,
) -> Progress:
    """Train a run to its last step, from a checkpoint or from the start.

    The loss does not depend on stage, GPUs or micro-batch: a step's samples are a function of (seed, step), every
    window of gradient accumulation is full, and gradients are averaged over the global batch, or over its targets. It
    does where a user's class draws random numbers, as for dropout; where it normalises over the batch, or the loss is
    no mean over samples, all points of a study have one layout.

    Args:
        session: The engine.
        order: Which rank this is, and how the global batch is split.
        task: What is trained.
        start: Where the ranks agreed to begin.
        heartbeat: Told the number of steps done, or a phase.
        pulse: Told that a phase, or the step after so many, goes on.
        resumed: Told the step at which this attempt begins, and why it is not that of the newest checkpoint.
        saved: Told the step of each checkpoint once it is whole.
        stop_requested: Asked after each step; a yes on one rank stops all of them at the same step.
        ahead: Where micro-batches come from; without it, and where training begins at another step, they are built
            when they are asked for.

    Raises:
        DivergedError: The loss is not finite, a step was skipped, or the loss has doubled.
        PreemptedError: A stop was requested; the state is saved.
    """
    run, workload, engine = task.plan, task.workload, session.engine
    checkpoints = Path(order.run_folder) / "checkpoint"
    progress = _begin(load(session, order, start))
    resumed(progress.start_step, progress.restarted)
    memory = torch.cuda.max_memory_allocated if order.device_index is not None else None
    metrics = MetricsLog(Path(order.run_folder), progress.step, enabled=order.rank == 0, peak_memory=memory)
    seconds_before, waiting = progress.seconds, Waiting()
    built_ahead = ahead is not None and ahead.first_step == progress.step
    read = ahead.read if ahead is not None and built_ahead else workload.training_batch
    last_checkpoint = began = time.monotonic()

    remaining = range(progress.step, run.num_steps)
    for step, samples in zip(remaining, samples_of_run(task, progress.step), strict=True):
        if step in run.keep_steps:
            heartbeat("checkpoint")
            began += _keep(session, order, task, progress, pulse)
        learning_rate = learning_rate_at(step, run.num_steps, run.recipe)
        session.set_learning_rate(learning_rate)
        if workload.draws_in_training:  # dropout is the same after a resume
            seed_everything(run.seed * 1_000_003 + step, order.rank, session.device)
        if not workload.uses_every_parameter:
            session.forget_gradients()
        micro_batches = share_of_rank(samples, order.rank, order.world_size, order.gradient_accumulation_steps)
        agreed = None
        step_loss = torch.zeros((), dtype=torch.float64, device=session.device)
        batches = weighted_batches(workload, read, micro_batches, session, pulse, str(step))
        if session.casts is not None:
            session.casts.make()
        for number, (batch, weight) in enumerate(waiting.each(batches)):
            pulse(str(step))
            with session.accelerator.accumulate(engine):
                loss = weighted_loss(workload, engine, to_device(batch, session.device), weight)
                step_loss += loss.detach().double() / len(micro_batches)
                if number == len(micro_batches) - 1:
                    if session.casts is not None:
                        session.casts.drop()
                    # before the backward pass that ends in an update: a NaN must not reach the weights
                    last = step + 1 == run.num_steps  # an evaluation that fails shall not cost the training
                    patience = task.checkpoint_every_seconds * (_LAST_PATIENCE if last else 1.0)
                    due = time.monotonic() - last_checkpoint > patience
                    agreed = _agree(step_loss, stop_requested(), due, order)
                    if not math.isfinite(agreed.loss):
                        metrics.flush()
                        progress.seconds = seconds_before + time.monotonic() - began
                        raise DivergedError(f"the training loss is {agreed.loss} at step {step + 1}", progress)
                session.accelerator.backward(loss)
        progress.seconds = seconds_before + time.monotonic() - began
        assert agreed is not None
        if engine.skipped_steps:
            metrics.flush()
            raise DivergedError(f"the gradient of step {step + 1} is not finite", progress)

        progress.step = step + 1
        progress.waited_share = waiting.seconds / (progress.seconds - seconds_before)
        progress.first_loss = agreed.loss if progress.first_loss is None else progress.first_loss
        progress.smoothed_loss = _smooth(progress.smoothed_loss, agreed.loss)
        norm = engine.get_global_grad_norm()
        metrics.log(step + 1, agreed.loss, learning_rate, norm, progress.seconds, progress.waited_share)
        heartbeat(str(step + 1))
        _check_divergence(progress, metrics)
        if agreed.stop or agreed.checkpoint_due:
            heartbeat("checkpoint")
            metrics.flush()
            if _has_room(session, order, checkpoints):
                _save(session, order, task, progress, checkpoints, pulse)
                saved(progress.step)
            last_checkpoint = time.monotonic()
            began = last_checkpoint - (progress.seconds - seconds_before)
        if agreed.stop:
            raise PreemptedError(f"stopped at step {progress.step} of {run.num_steps}")

    metrics.flush()
    return progress


@dataclass(frozen=True)
class _Agreement:
    """What all ranks agree on at a step."""

    loss: float
    stop: bool
    checkpoint_due: bool


def _agree(step_loss: torch.Tensor, stop: bool, checkpoint_due: bool, order: WorkerOrder) -> _Agreement:
    """Mean loss of the global batch, whether any rank was asked to stop, and whether rank 0's clock says checkpoint."""
    if order.world_size == 1:
        return _Agreement(step_loss.item(), stop, checkpoint_due)
    flags = torch.tensor([float(stop), float(checkpoint_due and order.rank == 0)], dtype=torch.float64)
    values = torch.cat((step_loss[None] / order.world_size, flags.to(step_loss.device)))
    dist.all_reduce(values)
    loss, stops, dues = values.tolist()
    return _Agreement(loss, stops > 0, dues > 0)


def _smooth(average: float | None, value: float) -> float:
    return value if average is None else average + (value - average) / _SMOOTHING_STEPS


def _check_divergence(progress: Progress, metrics: MetricsLog) -> None:
    assert progress.smoothed_loss is not None
    assert progress.first_loss is not None
    if progress.step - progress.start_step < _SMOOTHING_STEPS:
        return
    if progress.smoothed_loss > _DIVERGED_FACTOR * progress.first_loss > 0:
        metrics.flush()
        raise DivergedError(
            f"the training loss, averaged over {_SMOOTHING_STEPS} steps, is {progress.smoothed_loss:.3f} at step "
            f"{progress.step}, more than {_DIVERGED_FACTOR:g} times the first step's {progress.first_loss:.3f}",
            progress,
        )


def _begin(point: ResumePoint) -> Progress:
    saved = point.saved
    if saved is None:
        return Progress(step=0, start_step=0, seconds=0.0, restarted=point.refused)
    _log.info("resumed at step %d from %s", saved.step, saved.path)
    return Progress(
        saved.step,
        start_step=saved.step,
        seconds=saved.seconds,
        first_loss=saved.first_loss,
        restarted=point.refused,
    )


def _has_room(session: Session, order: WorkerOrder, folder: Path) -> bool:
    """Whether a checkpoint fits on the disk, as rank 0 sees it; a run on a full disk goes on without."""
    needed = state_bytes(session.num_params_total, session.num_params_trainable) + _CHECKPOINT_MARGIN_BYTES
    lacking = shortage(folder, needed) if order.rank == 0 else None
    if lacking:
        _log.warning("no checkpoint is written: %s", lacking)
    fits = torch.tensor(0.0 if lacking else 1.0, device=session.device)
    if order.world_size > 1:
        dist.broadcast(fits, src=0)
    return bool(fits)


def _keep(session: Session, order: WorkerOrder, task: WorkerTask, progress: Progress, pulse: Pulse) -> float:
    """Keep the state for the run that branches off here; returns the seconds that took, which are no training."""
    began = time.monotonic()
    run_folder = RunFolder(Path(order.run_folder))
    if _has_room(session, order, run_folder.path):
        kept = run_folder.kept(progress.step)
        if order.rank == 0:
            for folder in (kept.parent, kept):
                folder.mkdir(mode=OWN_FOLDER, exist_ok=True)
        _wait(order)
        _save(session, order, task, progress, kept, pulse)
    return time.monotonic() - began


def _save(
    session: Session, order: WorkerOrder, task: WorkerTask, progress: Progress, folder: Path, pulse: Pulse
) -> None:
    task.check_files()
    temporary = temporary_folder(folder, progress.step)
    session.engine.save_checkpoint(str(temporary), tag=TAG, client_state=client_state(session))
    _wait(order)
    if order.rank == 0:
        assert progress.first_loss is not None
        state = SavedState(
            path=temporary,
            run_id=task.plan.run_id,
            step=progress.step,
            seconds=progress.seconds,
            first_loss=progress.first_loss,
            zero_stage=order.zero_stage,
            world_size=order.world_size,
            program=versions(),
        )
        commit_checkpoint(folder, state, pulse, trust_of(task))
    _wait(order)


def _wait(order: WorkerOrder) -> None:
    if order.world_size > 1:
        dist.barrier()
