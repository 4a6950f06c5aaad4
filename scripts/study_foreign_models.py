"""What planning knows of models that others wrote, beside counts by hand: a table, one line a model.

Run from the repository, with transformers installed: `python scripts/study_foreign_models.py [WIDTH]`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from flopsfit_ds.base.units import MIB
from flopsfit_ds.simulate.profile import profile_class
from flopsfit_ds.train.data.dataset import call_model
from helpers.study.foreign_models import FOREIGN, Foreign

COLUMNS = "| model | parameters | active | matrices | FLOPs a sample | by hand | off | kept for backward | planned in |"


def row(name: str, foreign: Foreign, width: int) -> str:
    """A model's line of the table."""
    start = time.process_time()
    found = profile_class(
        foreign.model_class,
        {"width": width},
        samples=foreign.batch,
        loss=lambda model, batch: foreign.loss(call_model(model, batch[0]), batch[1]),
        precision="fp32",
        tokens_per_sample=foreign.tokens,
    )
    seconds = time.process_time() - start
    by_hand = 3 * foreign.forward(width) - foreign.spared(width)
    if found.flops_per_sample is None:
        return f"| {name} | {found.num_params:,} | refused: {found.problem} |"
    off = found.flops_per_sample / by_hand - 1
    kept = found.profile.block_saved_bytes * found.profile.num_blocks / MIB
    return (
        f"| {name} | {found.num_params:,} | {found.num_params_active:,} | {found.num_params_matrices:,} | "
        f"{found.flops_per_sample:,} | {by_hand:,.0f} | {off:+.2%} | {kept:.2f} MiB | {seconds:.2f} s |"
    )


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    lines = [COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1)]
    lines += [row(name, foreign, size) for name, foreign in FOREIGN.items()]
    sys.stdout.write("\n".join(lines) + "\n")
