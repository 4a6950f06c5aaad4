"""Is a rule's learning rate near the best of a sweep? Twelve points of 30 to 600 tokens a parameter, rates by twos.

    python scripts/study_learning_rate.py [--folder FOLDER] [--seeds 1] [--sizes 3k 5k 9k]

Small byte-level decoders on the standard library's source: model, samples of a step, optimiser and schedule are those
of the plan, in a plain loop of one process, since a step of so small a model takes less than what an engine adds to
it. Killed, it goes on after the last run that ended. Rates are tried by twos until the lowest loss lies between two
others; the best one is the lowest of a parabola in log rate. A rule's multiplier is set as `tune` sets it, by the two
smallest sizes at the fewest tokens; then its rate at every point stands over the best one, with the loss that it gives
up. Last, one law is fitted to the best losses, and one to the losses at each rule's rates.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from flopsfit_ds import build_plan, fit_scaling_law
from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit import Point
from flopsfit_ds.plan.recipe.rules import PowerRule, RulePoint, rate_rule
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.spec import parse_spec
from flopsfit_ds.spec.rules import LearningRateRule
from flopsfit_ds.train.data.sampling import samples_of_steps
from flopsfit_ds.train.data.token_file import prepare_tokens
from flopsfit_ds.train.data.tokens import TokenWorkload
from flopsfit_ds.train.optimizers.build import build_optimizer
from flopsfit_ds.train.schedule import learning_rate_at
from flopsfit_ds.train.seeding import seed_everything

FIRST_RATE = 2**-6
BATCH = 1024
SPEC = f"""
name: learning-rate
model: {{vocab_size: 256, context_length: 64, head_dim: 4, width_per_layer: 12, tied_embeddings: true}}
data: {{source: python-stdlib, heldout_tokens: 128k}}
training: {{global_batch_tokens: {BATCH}, learning_rates: [{FIRST_RATE}], warmup_fraction: 0.05, precision: fp32}}
hardware: {{device: cpu}}
"""
RATIOS = [30, 80, 220, 600]
REFERENCE = {"learning_rate": 1e-2, "num_params": 1e4, "num_tokens": 1e6, "global_batch_tokens": BATCH}
"""Its rate does not matter: the multiplier is tuned."""
NEAR = 1.05  # a parabola in log rate holds near its lowest point: losses up to so many times the smallest
AGREES = 1.25


@dataclass(frozen=True)
class Swept:
    """A point of the grid, and what its rates came to.

    Attributes:
        at: As rules look at it.
        best: Rate of the lowest loss.
        parabola: Of loss over log rate, highest power first.
    """

    at: RulePoint
    best: float
    parabola: tuple[float, float, float]

    def loss(self, rate: float) -> float:
        """By the parabola."""
        return float(np.polyval(self.parabola, math.log(rate)))


class Runs:
    """Losses of runs, trained once and kept in a file."""

    def __init__(self, path: Path, seeds: int) -> None:
        self._path, self._seeds = path, seeds
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._known = {tuple(key): loss for key, loss in map(json.loads, lines)}

    def loss(self, run: RunPlan, workload: TokenWorkload, rate: float) -> float:
        """Held-out loss at a rate, the mean of all seeds."""
        found = []
        for seed in range(self._seeds):
            key = (run.num_params_total, run.num_steps, rate, seed)
            if key not in self._known:
                recipe = replace(run.recipe, learning_rate=rate)
                self._known[key] = trained(replace(run, recipe=recipe, seed=seed), workload)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
            found.append(self._known[key])
        return float(np.mean(found))


def trained(run: RunPlan, workload: TokenWorkload) -> float:
    """Held-out loss of a run; infinite where it diverged."""
    seed_everything(run.seed)
    model = workload.build_model(False)
    optimizer = build_optimizer(model, run.recipe)
    samples = samples_of_steps(0, run.num_steps, run.global_batch_sequences, workload.num_training_samples, run.seed)
    for step, indices in enumerate(samples):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, run.num_steps, run.recipe)
        workload.loss(model, workload.training_batch(indices)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.recipe.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        parts = np.array_split(np.arange(workload.num_heldout_samples), 16)
        losses = torch.cat([workload.sample_losses(model, workload.heldout_batch(part)) for part in parts])
    loss = float(losses.mean())
    return loss if math.isfinite(loss) else math.inf


def sweep(runs: Runs, run: RunPlan, workload: TokenWorkload, first: float) -> list[tuple[float, float]]:
    """Rates by twos, and their losses, the lowest of which lies between two others."""
    losses = {rate: runs.loss(run, workload, rate) for rate in (first / 2, first, first * 2)}
    while True:
        lowest = min(losses, key=lambda rate: losses[rate])
        beside = [rate for rate in (lowest / 2, lowest * 2) if rate not in losses]
        if not beside:
            return sorted(losses.items())
        losses[beside[0]] = runs.loss(run, workload, beside[0])


def swept(run: RunPlan, pairs: Sequence[tuple[float, float]]) -> Swept:
    """The best of a point's rates."""
    losses = [loss for _, loss in pairs]
    lowest = int(np.argmin(losses))
    near = [k for k in range(len(pairs)) if abs(k - lowest) <= 2 and losses[k] <= NEAR * losses[lowest]]
    near = sorted({*near, *(k for k in (lowest - 1, lowest, lowest + 1) if 0 <= k < len(pairs))})
    a, b, c = np.polyfit([math.log(pairs[k][0]) for k in near], [losses[k] for k in near], 2)
    at = RulePoint(
        run.num_params_total, run.num_params_non_embedding, run.num_params_matrices, run.num_tokens, BATCH
    )  # fmt: skip
    return Swept(at, math.exp(-b / (2 * a)), (float(a), float(b), float(c)))


def rules() -> dict[str, PowerRule]:
    """The shipped rules, and the quickstart's."""
    given = {"steplaw": {}, "porian": {}, "marin": {"reference": REFERENCE}, "sqrt-n-d": {"reference": REFERENCE}}
    found = {name: rate_rule(LearningRateRule.model_validate({"rule": name, **more})) for name, more in given.items()}
    custom = {"rule": "custom", "reference": REFERENCE, "params_exponent": -0.333}
    return found | {"quickstart's": rate_rule(LearningRateRule.model_validate(custom))}


def tuned(rule: PowerRule, points: Sequence[Swept]) -> float:
    """The multiplier by the two smallest sizes at their fewest tokens."""
    sizes = sorted({each.at.num_params for each in points})[:2]
    first = [min((p for p in points if p.at.num_params == n), key=lambda p: p.at.num_tokens) for n in sizes]
    return math.exp(sum(math.log(each.best / rule.value(each.at)) for each in first) / len(first))


def say(*cells: object) -> None:
    """A row of a table, at once."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


def tables(points: Sequence[Swept]) -> None:
    """Print what was found."""
    known = rules()
    multipliers = {name: tuned(rule, points) for name, rule in known.items()}
    say("N", "D / N", "best rate", *(f"{name}, x{multipliers[name]:.3g}" for name in known))
    for each in points:
        ratios = []
        for name, rule in known.items():
            rate = multipliers[name] * rule.value(each.at)
            ratios.append(f"{rate / each.best:.2f} ({each.loss(rate) - each.loss(each.best):+.4f})")
        ratio = each.at.num_tokens / each.at.num_params
        say(format_count(each.at.num_params), f"{ratio:.0f}", f"{each.best:.4f}", *ratios)
    held = []
    for name, rule in known.items():
        off = [max(r, 1 / r) for r in (multipliers[name] * rule.value(each.at) / each.best for each in points)]
        held.append(f"{sum(each <= AGREES for each in off)} of {len(off)}, worst {max(off):.2f}")
    say("within 25%", "", "", *held)
    n, d, best = (np.log([value(each) for each in points]) for value in (
        lambda p: p.at.num_params, lambda p: p.at.num_tokens, lambda p: p.best,
    ))  # fmt: skip
    (of_n, of_d, _), *_ = np.linalg.lstsq(np.stack([n, d, np.ones_like(n)], axis=1), best, rcond=None)
    sys.stdout.write(f"\nbest rate ~ N^{of_n:.3f} D^{of_d:.3f}\n\n")
    say("losses", "alpha", "beta", "a of N* ~ C^a, each with its interval")
    say("best of the sweep", *law_of(points, [each.best for each in points]))
    for name, rule in known.items():
        say(name, *law_of(points, [multipliers[name] * rule.value(each.at) for each in points]))


def law_of(points: Sequence[Swept], rates: Sequence[float]) -> list[str]:
    """The law of the points' losses at these rates, by their parabolas."""
    table = [
        Point(each.at.num_params, each.at.num_tokens, each.loss(rate)) for each, rate in zip(points, rates, strict=True)
    ]
    fit = fit_scaling_law(table, bootstrap_samples=200, other_forms=False)
    rows = {row.name: row for row in fit.parameter_rows}
    found = [(rows[name].value, rows[name].interval) for name in ("alpha", "beta", "a")]
    return [f"{value:.3f} [{ends.low:.3f}, {ends.high:.3f}]" if ends else f"{value:.3f}" for value, ends in found]


def points(folder: Path, sizes: Sequence[str], seeds: int) -> Iterator[Swept]:
    """Each point, its best rate found."""
    design = f"{{method: ladder, num_params: [{', '.join(sizes)}], tokens_per_parameter: {RATIOS}}}"
    plan = build_plan(parse_spec(f"{SPEC}output_root: {folder}\ndesign: {design}\n"))
    tokens = prepare_tokens(plan.corpus, folder, 256)
    runs, near = Runs(folder / "losses.jsonl", seeds), FIRST_RATE
    for run in sorted(plan.runs, key=lambda each: (each.num_params_total, each.num_tokens)):
        pairs = sweep(runs, run, TokenWorkload(run.model, tokens), near)
        near = min(pairs, key=lambda pair: pair[1])[0]
        sys.stderr.write(f"{run.label}: {', '.join(f'{rate:.4f} {loss:.4f}' for rate, loss in pairs)}\n")
        yield swept(run, pairs)


def main() -> None:
    """Train what is not trained yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/learning-rate"))
    parser.add_argument("--sizes", nargs="+", default=["3k", "5k", "9k"])
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tables(list(points(given.folder, given.sizes, given.seeds)))


if __name__ == "__main__":
    main()
