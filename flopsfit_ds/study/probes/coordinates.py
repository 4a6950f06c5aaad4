"""The coordinate check of muP: how far activations move in a few steps, over sizes, with the rule and without.

Where rates and scales follow width rightly, a coordinate of any activation moves as far at every width (Yang et al.,
2022, arXiv:2203.03466, appendix D.1, there for each step; here after the last one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from flopsfit_ds.model.architecture import LanguageShape
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.plan.recipe.recipe import Recipe, make_recipe
from flopsfit_ds.plan.recipe.rules import RulePoint
from flopsfit_ds.spec import Training
from flopsfit_ds.train.data.outputs import logits_of
from flopsfit_ds.train.data.tokens import language_model_loss
from flopsfit_ds.train.model.language import build_language_model
from flopsfit_ds.train.optimizers.build import build_optimizer, rate_factors
from flopsfit_ds.train.seeding import seed_everything

Over = Literal["width", "depth"]
_TOKENS = 256
"""Of the batch that all steps see."""
_SKEW = 3  # ids are floor(V u^3), u even: some are frequent, as in a text, so that there is something to learn


@dataclass(frozen=True)
class Coordinates:
    """How far activations moved.

    Attributes:
        over: What grows.
        values: Widths, or depths, rising.
        ruled: Whether the rule was on.
        changes: By activation, root mean square of what a coordinate moved by, at each value.
    """

    over: Over
    values: tuple[int, ...]
    ruled: bool
    changes: dict[str, tuple[float, ...]]

    def slope(self, name: str) -> float:
        """Exponent of an activation's change in what grows: 0 where it stays as it is."""
        x, y = np.log(self.values), np.log(self.changes[name])
        return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() else math.inf


def check_coordinates(
    shapes: Sequence[tuple[int, LanguageShape]],
    over: Over,
    training: Training,
    learning_rate: float,
    optimizer: OptimizerPlan | None,
    *,
    num_steps: int,
    num_seeds: int,
) -> tuple[Coordinates, Coordinates]:
    """Train models of all sizes for a few steps, with the rule and without.

    Args:
        shapes: What grows, and the shape with the rule.
        over: Its name.
        training: The spec's section.
        learning_rate: Peak, held from the first step on.
        optimizer: What trains the parameters; None for AdamW with one rate for all.
        num_steps: Of each model.
        num_seeds: Whose changes are averaged.
    """
    values = tuple(value for value, _ in shapes)
    results = []
    for ruled in (True, False):
        moved: dict[str, list[float]] = {}
        for _, shape in shapes:
            at = shape if ruled else replace(shape, mup=None)
            point = RulePoint(1.0, 1.0, 1.0, training.global_batch_tokens, training.global_batch_tokens)
            recipe = make_recipe(training, learning_rate, point, max(num_steps, 100), optimizer, at.mup)
            squares: dict[str, list[float]] = {}
            for seed in range(num_seeds):
                for name, change in _changes(at, recipe, seed, num_steps).items():
                    squares.setdefault(name, []).append(change**2)
            for name, found in squares.items():
                moved.setdefault(name, []).append(math.sqrt(sum(found) / len(found)))
        results.append(Coordinates(over, values, ruled, {name: tuple(found) for name, found in moved.items()}))
    return results[0], results[1]


def _changes(shape: LanguageShape, recipe: Recipe, seed: int, num_steps: int) -> dict[str, float]:
    """Root mean square of what each activation moved by."""
    seed_everything(seed)
    batch = _batch(shape, seed)
    model = build_language_model(shape, False)
    optimizer = build_optimizer(model, recipe)
    factors = rate_factors(optimizer)
    before = _activations(model, batch[0])
    model.train()
    for step in range(num_steps):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = recipe.learning_rate * factor * (step + 1) / num_steps
        language_model_loss(shape, model, batch).backward()
        if recipe.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
    after = _activations(model, batch[0])
    return {name: float((after[name] - before[name]).pow(2).mean().sqrt()) for name in before}


def _batch(shape: LanguageShape, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert shape.vocab_size is not None
    length = min(shape.context_length, _TOKENS)
    even = torch.rand(max(1, _TOKENS // length), length + 1, generator=torch.Generator().manual_seed(seed))
    ids = (shape.vocab_size * even**_SKEW).long()
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def _activations(model: nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the embedding, the first and the last block, and the head give."""
    found: dict[str, torch.Tensor] = {}
    handles = [module.register_forward_hook(_keeps(name, found)) for name, module in _watched(model)]
    model.eval()
    logits = logits_of(model(tokens))
    for handle in handles:
        handle.remove()
    return {**found, "logits": logits.float()}


def _keeps(name: str, found: dict[str, torch.Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        found[name] = tensor.float().clone()

    return keep


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for module in model.modules():
        if isinstance(module, nn.Embedding) or type(module).__name__ == "TokenEmbedding":
            yield "embedding", module
            break
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if stacks:
        stack = max(stacks, key=len)
        yield from (("first block", stack[0]), ("last block", stack[-1]))
