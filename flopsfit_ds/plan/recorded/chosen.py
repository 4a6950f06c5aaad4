"""The batches that an adaptive design has chosen so far, as the sweep's folder holds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import json_converter, read_json, write_json
from flopsfit_ds.spec import AdaptiveDesign, SweepSpec

FILE = "adaptive.json"
"""Of a sweep's folder."""
VERSION = 1  # raised when an old file would be misread
_OF_FIRST = (
    "compute_budgets",
    "sizes_per_budget",
    "size_span",
    "tokens_per_parameter",
    "tokens_per_parameter_exponent",
)


@dataclass(frozen=True)
class ChosenRun:
    """A run to train, or other learning rates at a run that was trained.

    Attributes:
        purpose: "law", or "tuning": does a run lose by its learning rate?
        num_params: Its size as a design means it; of a tuning run, all parameters of the run whose rates are tried.
        compute: Training FLOPs of one run.
        num_tokens: Of a tuning run: the tokens of that run.
        learning_rates: Of a tuning run: peak rates to try.
    """

    purpose: Literal["law", "tuning"]
    num_params: float
    compute: float
    num_tokens: int | None = None
    learning_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class ChosenBatch:
    """A batch, and what it was chosen on.

    Attributes:
        runs: What is trained.
        gpu_hours_before: What all runs before it took.
        gpu_hours: What it is expected to take.
        flops_per_second: Of one device, by which that is expected.
        num_params_error: Standard error of ln N* at the target before it.
        loss_error: Of ln L*.
        num_params_error_after: Expected with it.
        loss_error_after: Expected with it.
        left_out: Runs that would have been chosen and cannot be planned, each with the reason.
    """

    runs: tuple[ChosenRun, ...]
    gpu_hours_before: float
    gpu_hours: float
    flops_per_second: float
    num_params_error: float
    loss_error: float
    num_params_error_after: float
    loss_error_after: float
    left_out: tuple[str, ...] = ()

    def words(self) -> str:
        """For people."""
        law = sum(run.purpose == "law" for run in self.runs)
        rates = sum(len(run.learning_rates) for run in self.runs)
        what = [f"{law} run{'s' * (law > 1)} for the law"] if law else []
        what += [f"{rates} runs at other learning rates"] if rates else []
        return (
            f"{' and '.join(what)}, {self.gpu_hours:.3g} GPU-hours as expected; the standard error of N* at the target "
            f"is {self.num_params_error:.1%}, of its loss {self.loss_error:.2%}, and with them "
            f"{self.num_params_error_after:.1%} and {self.loss_error_after:.2%} are expected"
        )


@dataclass(frozen=True)
class Stop:
    """Why nothing more is chosen.

    Attributes:
        reason: For people.
        basis: Hash of the runs and the settings that it was decided on.
    """

    reason: str
    basis: str


@dataclass(frozen=True)
class Choices:
    """The content of the file.

    Attributes:
        first: Hash of what the first batch's runs follow from.
        batches: In their order.
        stop: None as long as more may be chosen.
        version: Of the file's form.
    """

    first: str = ""
    batches: tuple[ChosenBatch, ...] = ()
    stop: Stop | None = None
    version: int = VERSION

    @property
    def runs(self) -> tuple[ChosenRun, ...]:
        """Of all batches."""
        return tuple(run for batch in self.batches for run in batch.runs)

    def words(self, spec: SweepSpec) -> list[str]:
        """What a plan says of its design; nothing of a design that chooses no runs."""
        design = spec.design
        if not isinstance(design, AdaptiveDesign):
            return []
        if not self.batches and self.stop is None:
            asked = [("N*", design.num_params_error), ("its loss", design.loss_error)]
            until = [f"of {what} {error:.2%}" for what, error in asked if error is not None]
            return [
                f"design.method adaptive: this is the first batch; up to {design.batches} batches of up to "
                f"{design.runs_per_batch} runs follow, chosen once it has ended, within {design.gpu_hours:g} GPU-hours "
                "in all"
                + (f", until the standard error at the target is {' and '.join(until)}" if until else "")
                + "; what they cost is not in this plan's totals"
            ]
        told = [f"design.method adaptive: batch {k}: {batch.words()}" for k, batch in enumerate(self.batches, start=1)]
        told += [f"design.method adaptive: not trained: {each}" for batch in self.batches for each in batch.left_out]
        return told + ([f"design.method adaptive: ended: {self.stop.reason}"] if self.stop else [])


def read_choices(folder: Path, spec: SweepSpec) -> tuple[Choices, list[str]]:
    """The batches chosen so far, and what to say of them; none where the folder has no such file.

    Args:
        folder: Of the sweep.
        spec: What the user wants; batches that were chosen on another first batch do not count.

    Raises:
        DataError: It is of another version.
        RecordError: It is damaged.
    """
    path = folder / FILE
    if not isinstance(spec.design, AdaptiveDesign):
        return Choices(), []
    if not path.exists():
        return Choices(first_batch(spec)), []
    try:
        found = json_converter(Choices).validate_python(read_json(path))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DataError(f"{path}: of another version ({reason}); move it away to choose anew") from None
    if found.version != VERSION:
        raise DataError(f"{path}: version {found.version}, known is {VERSION}; move it away to choose anew")
    if found.first == first_batch(spec):
        return found, []
    said = f"{path}: its batches were chosen on another first batch (model, data, training or design have changed)"
    return Choices(first_batch(spec)), [f"{said}; they are chosen anew"]


def write_choices(folder: Path, choices: Choices) -> None:
    """Write the file whole.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    write_json(folder / FILE, json_converter(Choices).dump_python(choices, mode="json"))


def first_batch(spec: SweepSpec) -> str:
    """Hash of all that the runs of the first batch follow from, of which values as they always were are no part."""
    kept = spec.model_dump(
        mode="json",
        include={"model": True, "data": True, "training": True, "design": set(_OF_FIRST)},
        exclude={"training": {"checkpoint_every", "compile", "data_workers"}},
        exclude_defaults=True,
    )
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
