"""The folder of a sweep: what is planned, what happened, written so that a kill at any moment loses nothing.

One folder a run; JSON in whole files replaced by rename, JSON lines with a checksum each. No database: sweeps live
on network file systems. Records are self-contained: whatever reads them (a fit, a report) needs no plan.
"""

from flopsfit_ds.records.folder import OWN_FOLDER, RunFolder, SweepFolder
from flopsfit_ds.records.record import (
    RECORD_VERSION,
    Attempt,
    HeldoutLoss,
    Observed,
    Planned,
    RunRecord,
    SourceTokens,
    Status,
)

__all__ = [
    "OWN_FOLDER",
    "RECORD_VERSION",
    "Attempt",
    "HeldoutLoss",
    "Observed",
    "Planned",
    "RunFolder",
    "RunRecord",
    "SourceTokens",
    "Status",
    "SweepFolder",
]
