"""A script of this folder as if it had been started as one, with what a test's forking server has imported."""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path

from helpers.engine import spare
from helpers.forking import write_to


def run(script: str, log: Path, environment: dict[str, str], arguments: list[str]) -> int:
    """Become the script's process, in a session of its own, and return its exit code."""
    os.setsid()
    write_to(log)
    os.environ.clear()
    os.environ.update(environment)
    path = str(Path(__file__).with_name(f"{script}.py"))
    sys.argv = [path, *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__file__ = path
    spare.keep_one()
    return importlib.import_module(f"helpers.engine.{script}").main(arguments)
