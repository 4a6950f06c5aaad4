"""Models that others wrote: what planning knows of them beside counts by hand, and what engines and simulation say.

Run from the repository, with the `test` extra and transformers installed:

    python scripts/study_foreign_models.py            counts: parameters and FLOPs, by us and by hand
    python scripts/study_foreign_models.py --train    held-out losses of twelve steps by real engines, and memory by
                                                      closed forms and by simulation, in four layouts; some minutes
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.base.units import MIB
from flopsfit_ds.memory import Strategy, estimate_memory
from flopsfit_ds.simulate import SimulationError, Simulator
from flopsfit_ds.simulate.profile import ClassMeasurement
from helpers.study.foreign_models import FOREIGN, Foreign
from helpers.study.foreign_training import BATCH, WIDTH, measured, simulated, trained
from helpers.train.ranks import Layout, RankServer

LAYOUTS = {"ZeRO-0 on 1": Layout(0, 1), "ZeRO-0 on 2": Layout(0, 2), "ZeRO-2 on 2": Layout(2, 2)}
LAYOUTS["ZeRO-3 on 2"] = Layout(3, 2)
CPU = resolve_cluster("fp32", device="cpu", gpus_per_node=2, host_memory=2**34)


def say(*cells: object) -> None:
    """A row of a table, at once."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def head(*cells: str) -> None:
    """A table's head."""
    say(*cells)
    sys.stdout.write("|---" * len(cells) + "|\n")


def counts(name: str, foreign: Foreign, found: ClassMeasurement) -> None:
    """Parameters and FLOPs of a model."""
    by_hand = 3 * foreign.forward(WIDTH) - foreign.spared(WIDTH)
    if found.flops_per_sample is None:
        say(name, f"{found.num_params:,}", f"refused: {found.problem}", "", "", "", "")
        return
    shown = (found.num_params, found.num_params_active, found.num_params_matrices, found.flops_per_sample)
    cells = ("" if number is None else f"{number:,}" for number in shown)
    say(name, *cells, f"{by_hand:,.0f}", f"{found.flops_per_sample / by_hand - 1:+.2%}")


def _planned(found: ClassMeasurement, layout: Layout) -> bool:
    """Whether planning lets a model have a layout: of those whose batch may pass parameters by, not every one."""
    return not found.uneven or layout.zero_stage == 0 or (layout.zero_stage == 3 and bool(found.leaves))


def engines(name: str, found: ClassMeasurement, server: RankServer, folder: Path) -> None:
    """Held-out losses of a model in all layouts."""

    def loss(layout: Layout) -> str:
        if not _planned(found, layout):
            return "not planned"
        try:
            attempt = trained(server, folder / f"{name}-{layout.zero_stage}-{layout.world_size}", name, layout)
        except PlanError as error:
            return f"refused: {str(error)[:40]}..."
        if set(attempt.codes) != {0}:
            return f"exit {attempt.codes}"
        return f"{attempt.outcome['loss']:.7f}"

    say(name, *map(loss, LAYOUTS.values()))


def memory(name: str, foreign: Foreign, found: ClassMeasurement, simulator: Simulator) -> None:
    """Peak memory of a model in all layouts: closed form, simulated, and their ratio."""

    def peak(layout: Layout) -> str:
        if not _planned(found, layout):
            return "not planned"
        micro_batch = BATCH // layout.world_size
        strategy = Strategy(layout.zero_stage, layout.world_size, micro_batch, False, "none", "fp32")  # pyright: ignore
        closed = estimate_memory(found.profile, strategy, CPU, accumulation=1).peak_allocated_bytes
        try:
            seen = simulated(simulator, foreign, WIDTH, strategy, CPU, found).peak_allocated_bytes
        except SimulationError as error:
            return f"{closed / MIB:.2f}, {str(error)[:60]}"
        return f"{closed / MIB:.2f} / {seen / MIB:.2f} ({closed / seen - 1:+.0%})"

    say(name, *map(peak, LAYOUTS.values()))


def each(row: Callable[[str, Foreign, ClassMeasurement], None]) -> None:
    """A row for every model; what is asked for by name on the command line, else all."""
    wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or list(FOREIGN)
    for name in wanted:
        row(name, FOREIGN[name], measured(FOREIGN[name], WIDTH))


def main() -> None:
    """Print the tables."""
    logging.disable(logging.WARNING)
    head("model", "parameters", "active", "matrices", "FLOPs a sample", "by hand", "off")
    each(counts)
    if "--train" not in sys.argv:
        return
    sys.stdout.write("\nHeld-out loss after twelve steps of eight samples\n\n")
    head("model", *LAYOUTS)
    server = RankServer()
    with tempfile.TemporaryDirectory() as folder:
        each(lambda name, _foreign, found: engines(name, found, server, Path(folder)))
    server.close()
    sys.stdout.write("\nPeak memory of the worst rank in MiB: closed form / simulated\n\n")
    head("model", *LAYOUTS)
    with Simulator() as simulator:
        each(lambda name, foreign, found: memory(name, foreign, found, simulator))


if __name__ == "__main__":
    main()
