"""Run again what was given up: its record is put aside, and its attempts so far no longer count against it."""

from __future__ import annotations

from flopsfit_ds.engine.disk.folder import readable_records
from flopsfit_ds.engine.disk.lease import Lease
from flopsfit_ds.records import RunFolder, RunRecord, SweepFolder

_PREFIX, _SUFFIX = "record.given-up-", ".json"


def give_another_chance(folder: SweepFolder) -> list[RunRecord]:
    """Put aside the records of failed and out-of-memory runs, so that the next sweep runs them.

    Returns:
        The records that were put aside.

    Raises:
        SweepFolderError: A driver is at work on the sweep.
    """
    lease = Lease.acquire(folder.path / "leases")
    try:
        given_up = [record for record in readable_records(folder).values() if record.status in ("failed", "oom")]
        for record in given_up:
            path = folder.run(record.run_id).record
            last = max((attempt.number for attempt in record.attempts), default=0)
            path.rename(path.with_name(f"{_PREFIX}{last}{_SUFFIX}"))
            folder.log_event("retry", run_id=record.run_id, after_attempt=last)
    finally:
        lease.release()
    return given_up


def forgiven_attempts(folder: RunFolder) -> int:
    """Number of the last attempt that no longer counts; 0 where all do."""
    names = (path.name for path in folder.path.glob(f"{_PREFIX}*{_SUFFIX}"))
    return max((int(name[len(_PREFIX) : -len(_SUFFIX)]) for name in names), default=0)
