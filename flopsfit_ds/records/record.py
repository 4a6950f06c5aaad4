"""What a run came to: self-contained, so that whatever reads it (a fit, a report) needs no plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flopsfit_ds.base.text import shown

RECORD_VERSION = 1  # raised when an old record would be misread
Status = Literal["completed", "diverged", "oom", "failed"]
WAITED_MUCH = 0.05
"""Share of a run's time spent waiting for samples; below it, what is lost is less than other runs of the same machine
differ by."""
AGAINST_WAITING = (
    "tokenise, decode or augment before training, read from a faster disk, or let training.data_workers build batches "
    "while steps run"
)


@dataclass(frozen=True)
class Planned:
    """What the plan expected of a run.

    Attributes:
        num_params_total: All parameters.
        num_params_non_embedding: Parameters outside the vocabulary-sized tables.
        num_params_trainable: Parameters with a gradient.
        num_tokens: Training tokens.
        flops: Exact training FLOPs.
        peak_memory_bytes: Peak allocated bytes of the fullest device.
        seconds: Training time; None on a CPU of which no run told it.
        zero_stage: ZeRO stage.
        world_size: Devices.
        num_params_active: Parameters that a token makes use of; None where unknown, and in records of old versions.
        num_params_matrices: Parameters in matrices, output head among them; None as above.
        flops_source: `counted`, or `6nd` where the user accepted 6 N D; None in records of old versions.
    """

    num_params_total: int
    num_params_non_embedding: int
    num_params_trainable: int
    num_tokens: int
    flops: float
    peak_memory_bytes: int
    seconds: float | None
    zero_stage: int
    world_size: int
    num_params_active: int | None = None
    num_params_matrices: int | None = None
    flops_source: Literal["counted", "6nd"] | None = None


@dataclass(frozen=True)
class Observed:
    """What the workers measured; None where a value could not be measured, with the reason in `missing`.

    Attributes:
        num_params_total: All parameters of the module that was built.
        num_params_trainable: Those with a gradient.
        num_tokens: Tokens trained on.
        flops: Training FLOPs of these tokens.
        peak_memory_bytes: Largest `max_memory_allocated` of all ranks.
        peak_host_memory_bytes: Largest resident set of all ranks.
        seconds: Time of the training loop over all attempts that led to the result, evaluation and start-up left out.
        tokens_per_second: Tokens trained on over `seconds`.
        model_flops_utilisation: FLOPs over `seconds`, devices and the peak FLOP/s of a device.
        zero_stage: As the engine reports it.
        world_size: As the process group reports it.
        skipped_steps: Steps the optimiser skipped.
        train_loss: Mean training loss of the last steps; never used in a fit.
        missing: For each measurement that is None, why.
        waited_share: Of rank 0's time in the last attempt, waiting for samples.
        compiled: Whether the model's blocks were compiled; where they were to be and could not, `missing` says why.
    """

    num_params_total: int
    num_params_trainable: int
    num_tokens: int
    flops: float
    peak_memory_bytes: int | None
    peak_host_memory_bytes: int | None
    seconds: float
    tokens_per_second: float
    model_flops_utilisation: float | None
    zero_stage: int
    world_size: int
    skipped_steps: int
    train_loss: float | None
    missing: dict[str, str]
    waited_share: float | None = None
    compiled: bool | None = False


@dataclass(frozen=True)
class Attempt:
    """One try of a run.

    Attributes:
        number: 1 for the first.
        outcome: How it ended; `preempted` and `interrupted` are not failures and do not count as tries.
        reason: Why, in words.
        slots: Names of the slots it ran on, such as `0` or `node1:3`.
        zero_stage: ZeRO stage.
        world_size: Devices.
        micro_batch_size_per_gpu: Sequences.
        gradient_accumulation_steps: Micro-batches an optimiser step.
        start_step: Optimiser steps already done when it began (resumed from a checkpoint).
        started_at: Seconds since the epoch.
        seconds: From the decision to run it to the exit of its last process.
        fault: The program's error and its place, where the same attempt would end so again; None for all else.
        restarted: Why it did not go on from the newest checkpoint; None where it did, or where there was none.
    """

    number: int
    outcome: Literal["completed", "diverged", "oom", "failed", "hung", "killed", "preempted", "interrupted"]
    reason: str | None
    slots: tuple[str, ...]
    zero_stage: int
    world_size: int
    micro_batch_size_per_gpu: int
    gradient_accumulation_steps: int
    start_step: int | None
    started_at: float
    seconds: float
    fault: str | None = None
    restarted: str | None = None


@dataclass(frozen=True)
class HeldoutLoss:
    """The loss on a further held-out set.

    Attributes:
        loss: Nats a token; None where it is no number.
        loss_standard_error: Its standard error over the set's sequences.
        loss_tokens: Tokens it was measured on.
        bits_per_byte: The same in bits a byte of text; None where bytes are not known.
    """

    loss: float | None
    loss_standard_error: float | None
    loss_tokens: int | None
    bits_per_byte: float | None


@dataclass(frozen=True)
class SourceTokens:
    """What a run took of a source of its mixture.

    Attributes:
        num_tokens: Trained on, all repeats counted.
        unique_tokens: To train on; fewer mean repeats.
        repeats: How often the run went through them.
    """

    num_tokens: int
    unique_tokens: int
    repeats: float


@dataclass(frozen=True)
class RunRecord:
    """All that is known of one run.

    Attributes:
        run_id: Hash of what can change the loss.
        label: For people.
        status: How the run ended; only `completed` enters a fit.
        reason: Why it did not complete.
        loss: Held-out loss, nats a token.
        loss_standard_error: Its standard error over the held-out sequences.
        loss_tokens: Held-out tokens it was measured on.
        compute_budget_flops: The design's budget; None for designs without one.
        seed: Of weights and order of data.
        learning_rate: Peak.
        unique_tokens: Training tokens the data has; fewer than `planned.num_tokens` means repeats. None of a tokenised
            corpus where the run never came to its data.
        precision: `fp32`, `bf16` or `bf16-pure`.
        model: Shape, or class and arguments, for people.
        planned: Before.
        observed: After; None where the run never got that far.
        attempts: Every try.
        versions: Of python, torch, deepspeed, accelerate, transformers and this package.
        git_commit: Of the folder the sweep was started in; None outside a repository.
        host: Where rank 0 ran.
        device: Kind of device.
        finished_at: Seconds since the epoch.
        layout_held: Why GPUs, micro-batch and accumulation are part of its identity; None where they change no loss.
        data: What is assumed of the data, or was found out about it; nothing in records of earlier versions.
        trunk: The run that it branched off, by plan; None where none.
        bits_per_byte: The loss in bits a byte of text; None where bytes are not known, as of a file of ids.
        heldout: Losses on the spec's further held-out sets, by name.
        sources: What was taken of each source of a mixture, by name; nothing where there is one source.
    """

    run_id: str
    label: str
    status: Status
    reason: str | None
    loss: float | None
    loss_standard_error: float | None
    loss_tokens: int | None
    compute_budget_flops: float | None
    seed: int
    learning_rate: float
    unique_tokens: int | None
    precision: str
    model: dict[str, Any]
    planned: Planned
    observed: Observed | None
    attempts: tuple[Attempt, ...]
    versions: dict[str, str]
    git_commit: str | None
    host: str
    device: str
    finished_at: float
    data: tuple[str, ...] = ()
    version: int = RECORD_VERSION
    layout_held: str | None = None
    trunk: str | None = None
    bits_per_byte: float | None = None
    heldout: dict[str, HeldoutLoss] = field(default_factory=dict)
    sources: dict[str, SourceTokens] = field(default_factory=dict)

    def judged_by(self, name: str | None) -> RunRecord:
        """The record with the loss on a held-out set in the place of its loss; as it is where no name is given."""
        if name is None:
            return self
        found, reason = self.heldout.get(name, HeldoutLoss(None, None, None, None)), self.reason
        if found.loss is None and self.status == "completed":
            reason = f"completed without a loss on the held-out set {name}"
        return replace(
            self,
            loss=found.loss,
            loss_standard_error=found.loss_standard_error,
            loss_tokens=found.loss_tokens,
            bits_per_byte=found.bits_per_byte,
            reason=reason,
        )


_COUNTED = ("num_params_total", "num_params_trainable", "num_tokens", "flops", "seconds")
"""What a law, or a price, is made of: numbers, none below 0; nothing is planned without parameters, tokens or FLOPs."""

_MAY_BE_ZERO = ("num_params_trainable", "seconds")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def impossible(content: Any) -> str | None:
    """Why no version that this one knows wrote such a record; a converter of types would let these values pass."""
    if not isinstance(content, dict):
        return f"not a record but {shown(content)}"
    version = content.get("version", RECORD_VERSION)
    if version != RECORD_VERSION:
        return f"a record of version {shown(version)}; this program knows version {RECORD_VERSION}"
    for name in ("loss", "loss_standard_error"):
        value = content.get(name)
        if value is not None and not _is_number(value):
            return f"{name} is {shown(value)}, which no run measures"
    for part, least in (("planned", 1), ("observed", 0)):
        values = content.get(part)
        if not isinstance(values, dict):
            continue
        for name in _COUNTED:
            value: Any = values.get(name, least)
            if (part, name, value) == ("planned", "seconds", None):
                continue  # nothing told the time when it was planned
            if not _is_number(value) or value < (0 if name in _MAY_BE_ZERO else least):
                return f"{part}.{name} is {shown(value)}, which no run has"
    return None
