"""`schema`, `validate` and `specs`: what a spec may contain, whether one is right, and those that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from flopsfit_ds.base.presets import preset_folder, shipped_specs
from flopsfit_ds.base.units import format_flops
from flopsfit_ds.cli.options import AllowImport, AsJson, Overrides, SpecArgument, plan_from, print_json
from flopsfit_ds.cli.prose import say


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command()
    def schema() -> None:  # pyright: ignore[reportUnusedFunction]
        """Print the JSON Schema of a spec, for editors: their first line names the file it is written to.

        Example: flopsfit-ds schema > spec.schema.json
        """
        from flopsfit_ds.spec import spec_json_schema

        print(json.dumps(spec_json_schema(), indent=1))

    @app.command()
    def validate(  # pyright: ignore[reportUnusedFunction]
        spec: SpecArgument, overrides: Overrides = None, allow_import: AllowImport = None
    ) -> None:
        """Say whether a spec can be planned: every field, its data, its sizes, and where the runs would fit.

        Example: flopsfit-ds validate my-study.yaml
        """
        sweep = plan_from(spec, overrides, allow_import)
        flops = format_flops(sum(run.flops for run in sweep.runs))
        for warning in sweep.warnings:
            say(f"warning: {warning}")
        where = f"{sweep.cluster.num_gpus} {sweep.cluster.device_name}"
        say(f"{spec}: valid: {len(sweep.runs)} runs, {flops} FLOPs, on {where}")

    @app.command()
    def specs(as_json: AsJson = False) -> None:  # pyright: ignore[reportUnusedFunction]
        """List the shipped specs and the launchers' and DeepSpeed presets; a spec's name can stand for its path.

        Example: flopsfit-ds specs
        """
        told = {name: _first_comment(path) for name, path in shipped_specs().items()}
        if as_json:
            print_json(
                [{"name": name, "path": str(shipped_specs()[name]), "says": text} for name, text in told.items()]
            )
            return
        for name, text in told.items():
            say(f"{name:20s} {text}")
        others = sorted(path.name for path in preset_folder().iterdir() if path.stem not in shipped_specs())
        say(f"presets and the specs' JSON Schema in {preset_folder()}: {', '.join(others)}")


def _first_comment(path: Path) -> str:
    """What a shipped spec says of itself in its first line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# ") and "yaml-lang" not in line)
