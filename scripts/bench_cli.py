"""Time each command to its first output, and its CPU time: medians, beside another build and accelerate's help.

    python scripts/bench_cli.py [--other PYTHON] [--repeats 9] [--sweep FOLDER] [--table CSV]

`--other` is the Python of an environment that holds an earlier build. CPU seconds are of the command and its children:
they hold on a busy machine, where the time to the first output does not.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats.

    Attributes:
        first: Seconds to the first byte of output.
        cpu: CPU seconds to the end.
    """

    first: float
    cpu: float


def timed(command: Sequence[str], repeats: int) -> Timing | None:
    """The medians; None where the command fails."""
    firsts: list[float] = []
    spent: list[float] = []
    for _ in range(repeats):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            os.read(process.stdout.fileno(), 1)
            firsts.append(time.monotonic() - began)
            process.stdout.read()
        if process.returncode != 0:
            return None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Timing(statistics.median(firsts), statistics.median(spent))


def commands(sweep: Path | None, table: Path | None) -> dict[str, list[str]]:
    """Name -> arguments."""
    found = {name: [name, "--help"] for name in ("sweep", "plan", "fit", "report")}
    found = {"help": ["--help"], **{f"{name} --help": words for name, words in found.items()}}
    found["plan"] = ["plan", "quickstart"]
    if sweep is not None:
        found |= {"status": ["status", str(sweep)], "report": ["report", str(sweep)]}
    if table is not None:
        found["fit"] = ["fit", str(table)]
    return found


def main() -> None:
    """Print a line a command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--other", type=Path, help="Python of an earlier build's environment")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sweep", type=Path, help="folder of a finished sweep, for status and report")
    parser.add_argument("--table", type=Path, help="CSV of runs, for fit")
    options = parser.parse_args()
    builds = {"this": sys.executable} | ({} if options.other is None else {"other": str(options.other)})
    print(f"{'command':16s} " + "  ".join(f"{name + ' first, CPU':>18s}" for name in builds))
    for name, words in commands(options.sweep, options.table).items():
        cells = []
        for python in builds.values():
            took = timed([python, "-m", "flopsfit_ds.cli", *words], options.repeats)
            cells.append("fails" if took is None else f"{took.first:.2f} s, {took.cpu:.2f} s")
        print(f"{name:16s} " + "  ".join(f"{cell:>18s}" for cell in cells))
    took = timed([sys.executable, "-m", "accelerate.commands.accelerate_cli", "--help"], options.repeats)
    print("accelerate help  " + ("fails" if took is None else f"{took.first:.2f} s, {took.cpu:.2f} s"))


if __name__ == "__main__":
    main()
