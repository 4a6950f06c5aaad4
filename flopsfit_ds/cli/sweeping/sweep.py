"""`sweep` and `retry`: plan, train, fit and report, under any launcher or none."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import typer

from flopsfit_ds.cli.options import (
    AllowImport,
    AsJson,
    ExecutorOption,
    Overrides,
    SpecArgument,
    SweepFolderArgument,
    plan_from,
    print_json,
    require_sweep,
    tuning_from,
)
from flopsfit_ds.cli.streams import lasting_output


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def sweep(  # pyright: ignore[reportUnusedFunction]
        spec: SpecArgument,
        overrides: Overrides = None,
        allow_import: AllowImport = None,
        slots: Annotated[
            int | None, typer.Option(min=1, help="Devices (on a CPU: worker slots) of this machine to use.")
        ] = None,
        executor: ExecutorOption = "auto",
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Show what would run where, or be submitted, and stop.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """Train all points of a spec, fit the scaling law and write the report. Run again, it goes on where it was.

        Example: flopsfit-ds sweep quickstart
        """
        from flopsfit_ds.cli.sweeping.carry_out import carry_out, carry_out_tuning
        from flopsfit_ds.cli.sweeping.dry_run import dry_run_json, show_dry_run

        if dry_run:
            plan = plan_from(spec, overrides, allow_import)
            if as_json:
                print_json(dry_run_json(plan, executor, slots))
            else:
                show_dry_run(plan, executor, slots)
            return
        with lasting_output():
            tuning = tuning_from(spec, overrides, allow_import)
            if tuning is not None:
                carry_out_tuning(tuning, executor, slots, as_json=as_json)
            plan_again = functools.partial(plan_from, spec, overrides, allow_import)
            carry_out(plan_again(), executor, slots, plan_again=plan_again, as_json=as_json)

    @app.command()
    def retry(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        slots: Annotated[int | None, typer.Option(min=1, help="Devices of this machine to use.")] = None,
        executor: ExecutorOption = "auto",
        as_json: AsJson = False,
    ) -> None:
        """Run the failed points of a sweep again; checkpoints are kept, earlier attempts no longer count.

        Example: flopsfit-ds retry outputs/quickstart
        """
        from flopsfit_ds.cli.sweeping.carry_out import carry_out
        from flopsfit_ds.engine import give_another_chance, read_plan
        from flopsfit_ds.records import SweepFolder

        require_sweep(folder)
        plan = read_plan(folder)
        again = give_another_chance(SweepFolder(folder))
        told = sys.stderr if as_json else sys.stdout
        print(f"{len(again)} failed runs of {len(plan.runs)} get another chance", file=told)
        for record in again:
            reason = record.reason or "no reason is on record"
            print(f"  {record.label}: {record.status} after {len(record.attempts)} attempts: {reason}", file=told)
        with lasting_output():
            carry_out(plan, executor, slots, as_json=as_json)
