"""Does one learning rate stay the best over widths? With `training.mup` and without, rates by twos.

    python scripts/study_mup.py [--folder FOLDER] [--widths 16 64] [--steps 800] [--seeds 1]

Byte-level decoders of two layers on the standard library's source, all trained for as many steps of 512 tokens: model,
samples, optimiser and schedule are those of a plan, in the plain loop of `study_learning_rate.py`. Killed, it goes on
after the last run that ended. Rates are tried by twos until the lowest loss lies between two others; the best one is
the lowest of a parabola in log rate. The base of the rule is the first width. Last, the best rates' exponent in width,
and what the last width loses at the first one's best rate.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from study_learning_rate import Runs, Swept, say, sweep, swept

from flopsfit_ds import build_plan
from flopsfit_ds.plan.family import DecoderFamily
from flopsfit_ds.plan.recipe.recipe import make_recipe
from flopsfit_ds.plan.recipe.rules import RulePoint
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.spec import parse_spec
from flopsfit_ds.spec.rules import Mup
from flopsfit_ds.spec.sections import DecoderModel
from flopsfit_ds.train.data.token_file import TokenFile, prepare_tokens
from flopsfit_ds.train.data.tokens import TokenWorkload

FIRST_RATE = 2**-8
DEPTH = 2
BATCH = 512
SPEC = f"""
name: mup
model: {{vocab_size: 256, context_length: 64, head_dim: 16, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 128k}}
design: {{method: points, points: [{{num_params: 50k, num_tokens: 100k}}]}}
training: {{global_batch_tokens: {BATCH}, learning_rates: [{FIRST_RATE}], warmup_fraction: 0.05, precision: fp32}}
hardware: {{device: cpu}}
"""


def runs_at(widths: Sequence[int], steps: int, mup: Mup | None, folder: Path) -> tuple[list[RunPlan], TokenFile]:
    """A run of each width, and the corpus."""
    plan = build_plan(parse_spec(f"{SPEC}output_root: {folder}\n"))
    model, training = plan.spec.model, plan.spec.training.model_copy(update={"mup": mup})
    assert isinstance(model, DecoderModel)
    family, found = DecoderFamily(model, training), []
    for width in widths:
        shape = family.shape_at(width, DEPTH)
        recipe = make_recipe(training, FIRST_RATE, RulePoint(1, 1, 1, steps * BATCH, BATCH), steps, None, shape.mup)
        found.append(
            replace(
                plan.runs[0],
                model=shape,
                recipe=recipe,
                num_steps=steps,
                num_tokens=steps * BATCH,
                num_params_total=shape.parameters.total,
            )
        )
    return found, prepare_tokens(plan.corpus, folder, 256)


def best_rates(widths: Sequence[int], steps: int, seeds: int, mup: Mup | None, folder: Path) -> list[Swept]:
    """The best rate at each width."""
    planned, tokens = runs_at(widths, steps, mup, folder)
    runs, near, found = Runs(folder / f"{'plain' if mup is None else 'mup'}.jsonl", seeds), FIRST_RATE, []
    for width, run in zip(widths, planned, strict=True):
        pairs = sweep(runs, run, TokenWorkload(run.model, tokens), near)
        near = min(pairs, key=lambda pair: pair[1])[0]
        sys.stderr.write(f"{width}: {', '.join(f'{rate:.4f} {loss:.4f}' for rate, loss in pairs)}\n")
        found.append(swept(run, pairs))
    return found


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/mup"))
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    widths = sorted(given.widths)
    say("best rate at a width of", *widths, "exponent", f"{widths[-1]} at the best rate of {widths[0]}")
    for words, mup in (("without", None), ("with muP", Mup(base_width=widths[0], base_depth=DEPTH))):
        found = best_rates(widths, given.steps, given.seeds, mup, given.folder)
        exponent = np.polyfit(np.log(widths), [math.log(each.best) for each in found], 1)[0]
        kept = found[-1].loss(found[0].best) - found[-1].loss(found[-1].best)
        cells = [f"{each.best:.4f} ({each.loss(each.best):.4f})" for each in found]
        say(words, *cells, f"{exponent:+.2f}", f"{kept:+.4f}")
    sys.stderr.write(f"{time.process_time():.0f} CPU seconds\n")


if __name__ == "__main__":
    main()
