"""The table of a sweep's records, derived: `results.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from flopsfit_ds.records import HeldoutLoss, Observed, Planned, RunRecord


def records_csv(records: Sequence[RunRecord]) -> str:
    """The table of `results.csv`: a row a run, planned beside observed."""
    columns = ["run_id", "label", "status", "reason", "loss", "loss_standard_error", "compute_budget_flops", "seed"]
    columns += ["learning_rate", "unique_tokens", "precision"]
    sets = sorted({name for record in records for name in record.heldout})
    planned = [f.name for f in fields(Planned)]
    observed = [f.name for f in fields(Observed) if f.name != "missing"]
    measured = [f.name for f in fields(HeldoutLoss)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*columns, *(f"planned_{n}" for n in planned), *(f"observed_{n}" for n in observed), "num_attempts",
         "bits_per_byte", *(f"heldout_{name}_{n}" for name in sets for n in measured)]
    )  # fmt: skip
    for record in records:
        seen = asdict(record.observed) if record.observed else {}
        row = [getattr(record, name) for name in columns] + [getattr(record.planned, name) for name in planned]
        losses = [asdict(record.heldout[name]) if name in record.heldout else {} for name in sets]
        row += [*(seen.get(name) for name in observed), len(record.attempts), record.bits_per_byte]
        writer.writerow([*row, *(loss.get(name) for loss in losses for name in measured)])
    return text.getvalue()
