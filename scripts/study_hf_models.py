"""Ten architectures of transformers by name: what is planned of them, their memory, and one loss at every ZeRO stage.

Run from the repository, with the `test` extra installed; a table for a page, in some minutes:

    python scripts/study_hf_models.py [ARCHITECTURE ...]
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from flopsfit_ds.simulate import SimulationError, Simulator
from helpers.study.hf_models import TOYS, config_of
from helpers.study.hf_training import peaks, short_plan, trained
from helpers.train.ranks import Layout, RankServer

STAGES = {stage: Layout(stage, 2) for stage in (0, 2, 3)}
HEAD = (
    "model",
    "parameters",
    "active",
    "FLOPs a token",
    "off by hand",
    "loss at ZeRO-0",
    "at 2",
    "at 3",
    "closed/simulated",
)


def say(*cells: object) -> None:
    """A row of a table, at once."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def row(name: str, folder: Path, server: RankServer, simulator: Simulator) -> None:
    """All that is said of an architecture."""
    run = short_plan(name, folder / name / "plan").runs[0]
    a_token = run.flops / run.num_tokens
    losses = []
    for stage, layout in STAGES.items():
        attempt = trained(server, folder / name / str(stage), name, layout)
        losses.append(f"{attempt.outcome['loss']:.6f}" if set(attempt.codes) == {0} else f"exit {attempt.codes}")
    ratios = []
    for layout in STAGES.values():
        try:
            closed, seen = peaks(simulator, run, layout)
            ratios.append(f"{closed / seen:.2f}")
        except SimulationError as error:
            ratios.append(str(error)[:40])
    off = a_token / (3 * TOYS[name].forward(config_of(run))) - 1
    say(
        name, f"{run.num_params_total:,}", f"{run.num_params_active:,}", f"{a_token:,.0f}", f"{off:+.2%}", *losses,
        ", ".join(ratios),
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    say(*HEAD)
    sys.stdout.write("|---" * len(HEAD) + "|\n")
    server = RankServer()
    with tempfile.TemporaryDirectory() as folder, Simulator() as simulator:
        for name in sys.argv[1:] or TOYS:
            row(name, Path(folder), server, simulator)
    server.close()


if __name__ == "__main__":
    main()
