"""Any command of the program, run in this process."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from flopsfit_ds.cli import main


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit code, and what came on both streams."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        code = main.run([str(argument) for argument in arguments])
    return code, stream.getvalue()


def run_json(*arguments: object) -> Any:
    """The JSON that a command prints."""
    code, output = invoke(*arguments)
    assert code == 0, output
    return json.loads(output)
