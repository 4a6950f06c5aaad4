"""A sweep's folder before a driver starts: what is planned is written, what a dead driver left is settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import JsonLines, atomic_write, read_json, update_json
from flopsfit_ds.base.trust import Trust
from flopsfit_ds.engine.disk.attempts import leftover_processes, newest_outcome, read_attempts, settle_open_attempts
from flopsfit_ds.engine.disk.lease import Right
from flopsfit_ds.engine.disk.recording import Recorder
from flopsfit_ds.engine.disk.results import records_csv
from flopsfit_ds.engine.fork.processes import end_leftovers
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import OWN_FOLDER, RunRecord, SweepFolder
from flopsfit_ds.simulate.decide import review_placements

_log = logging.getLogger(__name__)


def write_plan(plan: SweepPlan, folder: SweepFolder) -> None:
    """Write the spec, the plan, and each run's plan.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    atomic_write(folder.spec, yaml.safe_dump(plan.spec.model_dump(mode="json"), sort_keys=False))
    is_new = update_json(folder.plan, plan.to_json_dict())
    for run in plan.runs:
        run_folder = folder.run(run.run_id)
        if not is_new and run_folder.record.exists() and run_folder.plan.exists():
            continue  # it was written with the same plan, and the run has ended
        run_folder.path.mkdir(mode=OWN_FOLDER, exist_ok=True)
        update_json(run_folder.plan, run.to_json_dict(), durable=False)


def review_plan(plan: SweepPlan, folder: SweepFolder, progress: Progress) -> SweepPlan:
    """The plan with the placements of what is still to be trained checked by simulation, if the spec has it so.

    Raises:
        PlanError: Nothing that was planned for a run fits.
    """
    missing = runs_to_do(plan.runs, folder)
    if not (missing and plan.spec.execution.simulate_memory):
        return plan
    reviewed = review_placements(plan, missing, progress.on_review)
    for before, after in zip(plan.runs, reviewed.runs, strict=True):
        if before.placement.strategy != after.placement.strategy:
            folder.log_event("moved", run_id=after.run_id, reason=after.placement.reason)
    return reviewed


def read_plan(path: Path) -> SweepPlan:
    """The plan that a sweep's folder was last used with.

    Raises:
        RecordError: It is damaged, or of another version; the sweep's own command writes it again.
    """
    content = read_json(SweepFolder(path).plan)
    try:
        return replace(SweepPlan.from_json_dict(content), folder=path)
    except ValidationError as error:
        raise RecordError(f"{path}/plan.json: not a plan of this version: {error.errors()[0]['msg']}") from None


def runs_to_do(runs: Sequence[RunPlan], folder: SweepFolder) -> list[RunPlan]:
    """Runs that have no record, or none that can be read: a damaged one is put aside, and said."""
    missing = []
    for run in runs:
        run_folder = folder.run(run.run_id)
        try:
            if run_folder.read_record() is not None:
                continue
        except RecordError as error:
            aside = run_folder.record.with_name(f"record.damaged-{time.time():.0f}.json")
            run_folder.record.rename(aside)
            _log.warning("%s; put aside as %s, the run is recorded again", error, aside.name)
            folder.log_event("damaged", run_id=run.run_id, file=aside.name, reason=str(error))
        missing.append(run)
    return missing


def whole_records(runs: Sequence[RunPlan], folder: SweepFolder) -> list[RunRecord]:
    """Records of those runs that have one which can be read now; `conclude` sees to the others."""
    records = []
    for run in runs:
        with suppress(RecordError):
            record = folder.run(run.run_id).read_record()
            records += [record] if record is not None else []
    return records


def readable_records(folder: SweepFolder) -> dict[str, RunRecord]:
    """All records by run, also of runs that are no longer planned; a damaged one is passed over, and said."""
    records = {}
    for path in sorted((folder.path / "runs").glob("*/")):
        try:
            record = folder.run(path.name).read_record()
        except RecordError as error:
            _log.warning("%s; passed over: remove it, or plan its run again", error)
            continue
        if record is not None:
            records[path.name] = record
    return records


def record_measured(
    runs: Sequence[RunPlan], folder: SweepFolder, recorder: Recorder, lease: Right, events: JsonLines
) -> list[RunPlan]:
    """Write the records of runs whose workers wrote an outcome that nobody recorded, or whose record was damaged.

    Returns:
        The other runs, which have to be trained.

    Raises:
        SweepFolderError: The folder cannot be written, or is another driver's now.
    """
    left = []
    for run in runs:
        run_folder = folder.run(run.run_id)
        outcome = newest_outcome(run_folder)
        if outcome is None:
            left.append(run)
            continue
        lease.check()
        record = recorder.measured(run, outcome, read_attempts(run_folder))
        run_folder.write_record(record)
        events.append({"time": time.time(), "event": "record", "run_id": run.run_id, "status": record.status})
    return left


def conclude(
    plan: SweepPlan, folder: SweepFolder, recorder: Recorder, lease: Right
) -> tuple[dict[str, RunRecord], list[RunPlan]]:
    """Read the plan's records, write those again that were damaged while the sweep ran, and the table of them.

    Records of other studies in the same folder stay out of the table: no law holds for both.

    Returns:
        The records by run, and the plan's runs without one.

    Raises:
        SweepFolderError: The folder cannot be written, or is another driver's now.
    """
    lease.check()
    record_measured(runs_to_do(plan.runs, folder), folder, recorder, lease, folder.events)
    records = {record.run_id: record for record in whole_records(plan.runs, folder)}
    atomic_write(folder.results, records_csv(list(records.values())))
    return records, [run for run in plan.runs if run.run_id not in records]


def check_trusted(plan: SweepPlan, folder: SweepFolder, runs: Sequence[RunPlan]) -> None:
    """See that nobody else could have written what runs would go on from.

    Raises:
        SweepFolderError: Somebody could; or the sweep's key cannot be read or made.
    """
    trust = Trust.of_sweep(folder.path, plan.spec.execution.trust_shared_folder)
    trust.check([folder.path, *(path for run in runs if (path := folder.run(run.run_id).checkpoint).exists())])


def settle(folder: SweepFolder, runs: Sequence[RunPlan]) -> None:
    """End what a dead driver's workers still do, note how far their attempts came, and say which lines are damaged.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    _say_what_is_damaged(folder.events)
    for run in runs:
        run_folder = folder.run(run.run_id)
        _say_what_is_damaged(run_folder.metrics)
        for process in end_leftovers(leftover_processes(run_folder)):
            folder.log_event("leftover", run_id=run.run_id, pid=process.pid)
        for attempt in settle_open_attempts(run_folder):
            folder.log_event("settled", run_id=run.run_id, attempt=attempt.number, outcome=attempt.outcome)


def _say_what_is_damaged(lines: JsonLines) -> None:
    lines.read()
    if lines.num_damaged:
        _log.warning("%s: %d damaged lines are passed over", lines.path, lines.num_damaged)
