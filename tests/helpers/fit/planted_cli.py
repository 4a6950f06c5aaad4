"""The commands of the fit, run in this process."""

from __future__ import annotations

import json
from typing import Any

import typer
from typer.testing import CliRunner

from flopsfit_ds.cli.fitting.fit import register


def invoke(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def run(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    code, output = invoke(*arguments)
    assert code == 0, output
    return json.loads(output)
