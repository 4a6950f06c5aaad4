"""What `sweep` and `retry` do: train, fit, report, and print the conclusion."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flopsfit_ds import __version__
from flopsfit_ds.base.errors import RecordError, RunError
from flopsfit_ds.base.hardware import launched_world
from flopsfit_ds.base.storage import json_converter, read_json, write_json
from flopsfit_ds.cli.options import ExecutorChoice, print_json
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.spec import AdaptiveDesign

if TYPE_CHECKING:
    from flopsfit_ds.study.adaptive import PlanAgain
    from flopsfit_ds.study.console import Console
    from flopsfit_ds.study.tracking import Tracking


def carry_out(
    plan: SweepPlan,
    executor: ExecutorChoice,
    slots: int | None,
    *,
    plan_again: PlanAgain | None = None,
    as_json: bool = False,
) -> None:
    """Train what has no record, fit, report, and print the conclusion.

    Args:
        plan: What to train.
        executor: By whom.
        slots: Devices of this machine.
        plan_again: Of a design that chooses its runs: plans anew; without it, no further runs are chosen.
        as_json: Print the conclusion as JSON; what happens meanwhile goes to standard error.

    Raises:
        LaunchError: The executor does not carry out such a design.
        RunError: Runs failed.
    """
    from flopsfit_ds.study.console import Console

    console = Console(stderr=as_json)
    with _tracking(plan, console) as tracking:
        if plan_again is not None and isinstance(plan.spec.design, AdaptiveDesign):
            plan, records = _train_adaptively(plan, plan_again, console, executor, slots)
        else:
            records = _train(plan, console, executor, slots, tracking.start)
        if as_json:
            from flopsfit_ds.cli.fitting.report import summary_json
            from flopsfit_ds.study.steps import conclude_sweep

            print_json(summary_json(conclude_sweep(plan, records), plan))
        else:
            print(_conclusion(plan, records, console), end="")
    _refuse_failed(plan, records)


def carry_out_tuning(plan: SweepPlan, executor: ExecutorChoice, slots: int | None, *, as_json: bool = False) -> None:
    """Train the runs of a tuning that have no record.

    Args:
        plan: What to train.
        executor: By whom.
        slots: Devices of this machine.
        as_json: What happens goes to standard error.

    Raises:
        RunError: Runs failed.
    """
    from flopsfit_ds.study.console import Console

    console = Console(stderr=as_json)
    with _tracking(plan, console) as tracking:
        records = _train(plan, console, executor, slots, tracking.start)
    _refuse_failed(plan, records)


def _tracking(plan: SweepPlan, console: Console) -> Tracking:
    from flopsfit_ds.study.tracking import Tracking

    return Tracking(plan, console.warn)


def _train_adaptively(
    plan: SweepPlan, plan_again: PlanAgain, console: Console, executor: ExecutorChoice, slots: int | None
) -> tuple[SweepPlan, tuple[RunRecord, ...]]:
    from flopsfit_ds.study.adaptive import carry_on, refuse_executor

    def train(batch: SweepPlan) -> tuple[RunRecord, ...]:
        with _tracking(batch, console) as tracking:  # which knows the runs of its plan only
            return _train(batch, console, executor, slots, tracking.start)

    refuse_executor(executor, launched_world(os.environ) is not None)
    return carry_on(
        plan,
        plan_again,
        train,
        lambda text: console.tell(text),
        slots,
    )


def _train(
    plan: SweepPlan, console: Console, executor: ExecutorChoice, slots: int | None, begin: Callable[[], None]
) -> tuple[RunRecord, ...]:
    from flopsfit_ds.study.progress import SweepDisplay
    from flopsfit_ds.study.steps import run_sweep

    with SweepDisplay(console, plan, begin) as display:
        records = run_sweep(plan, executor=executor, slots=slots, progress=display)
    if not display.began:
        done = f"{plan.name}: all {len(records)} runs are done already, nothing is trained"
        print(done, file=sys.stderr if console.stderr else sys.stdout)
    return records


def _refuse_failed(plan: SweepPlan, records: Sequence[RunRecord]) -> None:
    failed = [record for record in records if record.status in ("failed", "oom")]
    if failed:
        reasons = "; ".join(f"{record.label}: {record.reason}" for record in failed[:3])
        raise RunError(
            f"{len(failed)} of {len(records)} runs failed ({reasons}); their logs are in {plan.folder}/runs; "
            f"`flopsfit-ds retry {plan.folder}` runs them again"
        )


def _conclusion(plan: SweepPlan, records: Sequence[RunRecord], console: Console) -> str:
    """Fit and report, and the summary of both; only read again where the same records gave the files that lie there."""
    folder = SweepFolder(plan.folder)
    remembered = folder.report / "summary.json"
    basis = [
        __version__,
        console.width,
        console.is_terminal,
        plan.spec.model_dump(mode="json"),
        plan.warnings,
    ]
    told = hashlib.sha256(json.dumps(basis, sort_keys=True).encode())
    for record in records:
        told.update(json_converter(RunRecord).dump_json(record))
    digest = told.hexdigest()
    try:
        known = read_json(remembered)
    except (FileNotFoundError, RecordError):
        known = {}
    if known.get("basis") == digest and known.get("files") == _hashes(folder):
        return known["summary"]

    from flopsfit_ds.cli.fitting.report import print_summary
    from flopsfit_ds.study.steps import conclude_sweep

    result = conclude_sweep(plan, records)
    text = io.StringIO()
    page = type(console)(file=text, width=console.width, force_terminal=console.is_terminal)
    print_summary(page, result.fit, result.records, result.report, parameter_count=plan.spec.fit.parameters)
    write_json(remembered, {"basis": digest, "files": _hashes(folder), "summary": text.getvalue()})
    return text.getvalue()


def _hashes(folder: SweepFolder) -> dict[str, str]:
    """SHA-256 of what a conclusion writes, and of what its page shows or gives the hash of."""
    shown = (folder.spec, folder.plan, folder.results, folder.fit, folder.report / "index.html")
    files = [path for path in (*shown, *folder.report.glob("*.svg")) if path.exists()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
