"""The errors a user can meet.

Each message says what was wrong, shows the numbers, and says what to do. `assert` is kept for mistakes of our own.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

PREPARE = "flopsfit-ds data prepare SPEC"
"""In messages that know no spec's name; the command line puts there what the user typed."""


class FlopsfitError(Exception):
    """Root of all errors that are reported as one line, without a traceback."""

    exit_code = 2


class SpecError(FlopsfitError):
    """The sweep spec, or an override of it, is not valid."""


class PlanError(FlopsfitError):
    """The spec is valid, but no plan meets it: a point that fits nowhere, a budget below one batch."""


class DataError(FlopsfitError):
    """Training data or a table of results cannot be read or used."""


class DataChangedError(FlopsfitError):
    """Training data was altered under a run that reads it; once it is restored, the run can go on."""


class FitError(FlopsfitError):
    """The points at hand do not support the law that was asked for."""


class LaunchError(FlopsfitError):
    """The launcher, the slots or the cluster differ from what the spec asks for."""


class SweepFolderError(FlopsfitError):
    """The sweep folder cannot be used: not writable, held by another driver, of another sweep."""


class RecordError(FlopsfitError):
    """A file of the sweep folder is torn or altered, and no good copy of it is left."""

    exit_code = 1


class RunError(FlopsfitError):
    """Runs of the sweep failed."""

    exit_code = 1


_REPEATABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    DataError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What code does again when it is given the same; no errors of devices, disks, networks or peers."""


def describe_error(error: BaseException) -> dict[str, Any]:
    """What a worker notes of the error that ended it: `kind`, `message`, `traceback`, and `fault`.

    `fault` is the same for the same error at the same place of the program; None for what may not happen again.
    """
    fault = None
    if isinstance(error, _REPEATABLE):
        frames = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        fault = f"{type(error).__name__}: {error} at {place}"
    shown = "".join(traceback.format_exception(error))
    return {"kind": "error", "message": f"{type(error).__name__}: {error}", "traceback": shown, "fault": fault}
