"""The numbers by which one run is optimised, resolved from the spec's rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.presets import Precision
from flopsfit_ds.base.units import format_count
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe.mup import scaled_optimizer
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.plan.recipe.rules import PowerRule, RulePoint, batch_rule, rate_rule
from flopsfit_ds.spec.training import DecayShape, Schedule, Training


@dataclass(frozen=True)
class Recipe:
    """How a run is optimised: all of it can change the loss.

    Attributes:
        learning_rate: Peak.
        warmup_steps: Steps of linear rise.
        final_learning_rate_fraction: End of the schedule over the peak.
        weight_decay: Of matrices.
        beta1: AdamW.
        beta2: AdamW.
        epsilon: AdamW.
        gradient_clipping: Largest norm; 0 for none.
        precision: `fp32`, `bf16` autocast over fp32 parameters, or `bf16-pure`.
        frozen_parameters: Glob patterns of names that are not trained.
        schedule: What follows the warm-up.
        decays: First step of each decay and the step after its last; none for schedules without.
        decay_shape: How the rate falls in them.
        tf32: Whether products of fp32 are made in TF32.
        optimizer: What trains the parameters; None for AdamW with one rate for all.
    """

    learning_rate: float
    warmup_steps: int
    final_learning_rate_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    gradient_clipping: float
    precision: Precision
    frozen_parameters: tuple[str, ...]
    schedule: Schedule = "cosine"
    decays: tuple[tuple[int, int], ...] = ()
    decay_shape: DecayShape = "sqrt"
    tf32: bool = False
    optimizer: OptimizerPlan | None = None

    def identity(self) -> dict[str, Any]:
        """What the recipe adds to a run's identity; what is as it always was adds nothing."""
        values = asdict(self)
        for field in dataclasses.fields(self):
            if field.default is not dataclasses.MISSING and values[field.name] == field.default:
                del values[field.name]
        if self.optimizer is not None:
            values["optimizer"] = self.optimizer.identity()
        return values


class SizedLike(Protocol):
    """What a rule needs to know of a model."""

    @property
    def num_params(self) -> int:
        """All parameters."""
        ...

    @property
    def num_params_non_embedding(self) -> int:
        """Outside vocabulary-sized tables."""
        ...

    @property
    def num_params_matrices(self) -> int | None:
        """In matrices, output head among them; None where unknown."""
        ...


def rule_point(model: SizedLike, num_tokens: float, global_batch_tokens: float = 1.0) -> RulePoint:
    """A model and its tokens, as rules look at them."""
    return RulePoint(
        model.num_params, model.num_params_non_embedding, model.num_params_matrices, num_tokens, global_batch_tokens
    )


def batch_tokens(training: Training, points: Sequence[RulePoint]) -> float:
    """Tokens an optimiser step of points that share a batch: by the rule at their geometric mean, or as given."""
    if training.global_batch is None:
        return training.global_batch_tokens
    rule = batch_rule(training.global_batch)
    product = 1.0
    for point in points:
        product *= rule.value(point) ** (1 / len(points))
    return product * training.global_batch.multiplier


def peak_rates(training: Training, point: RulePoint) -> tuple[float, ...]:
    """The peak learning rates that a point is trained at."""
    if training.learning_rate is not None:
        rule = training.learning_rate
        rate = rate_rule(rule).value(point)
        return tuple(rate * each for each in rule.multipliers or (rule.multiplier,))
    if training.learning_rate_reference_params is None:
        return training.learning_rates
    scale = (point.num_params / training.learning_rate_reference_params) ** training.learning_rate_exponent
    return tuple(rate * scale for rate in training.learning_rates)


def num_rates(training: Training) -> int:
    """How many peak learning rates every point is trained at."""
    if training.learning_rate is not None:
        return len(training.learning_rate.multipliers or (1.0,))
    return len(training.learning_rates)


def make_recipe(
    training: Training,
    learning_rate: float,
    point: RulePoint,
    num_steps: int,
    optimizer: OptimizerPlan | None = None,
    mup: MupScales | None = None,
) -> Recipe:
    """Every number of a run's optimisation.

    Args:
        training: The spec's section.
        learning_rate: Peak.
        point: As rules look at it.
        num_steps: Of the run.
        optimizer: What trains the parameters; None for AdamW with one rate for all.
        mup: How far the model lies from the base of muP; None without.

    Raises:
        PlanError: A half-life or a warm-up that the run cannot have.
    """
    batch = point.global_batch_tokens
    warmup_steps = _warmup_steps(training, batch, num_steps)
    weight_decay = _weight_decay(training, learning_rate, batch)
    return Recipe(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        final_learning_rate_fraction=(
            0.0 if training.schedule == "linear-to-zero" else training.final_learning_rate_fraction
        ),
        weight_decay=weight_decay,
        beta1=training.beta1,
        beta2=_beta2(training, batch),
        epsilon=_epsilon(training, point),
        gradient_clipping=training.gradient_clipping,
        precision=training.precision,
        frozen_parameters=training.frozen_parameters,
        schedule=training.schedule,
        decays=_decays(training, num_steps, warmup_steps),
        decay_shape=training.decay_shape if training.schedule in ("wsd", "wsd-s") else Recipe.decay_shape,
        tf32=training.tf32,
        optimizer=scaled_optimizer(optimizer, mup, weight_decay),
    )


def _warmup_steps(training: Training, batch: float, num_steps: int) -> int:
    if training.warmup_tokens is None:
        return round(training.warmup_fraction * num_steps)
    steps = round(training.warmup_tokens / batch)
    if steps >= num_steps:
        raise PlanError(
            f"training.warmup_tokens: {format_count(training.warmup_tokens)} are {steps} steps of "
            f"{format_count(batch)} tokens, and the run has {num_steps}; lower it, or write warmup_fraction"
        )
    return steps


def _decay_of(batch: float, half_life_tokens: float) -> float:
    """What is left after a step of something that halves in so many tokens."""
    return 0.5 ** (batch / half_life_tokens)


def _beta2(training: Training, batch: float) -> float:
    """AdamW's second moment forgets by tokens, not by steps: beta2 = 2^(-B / half-life), as marin keeps it."""
    if training.beta2_half_life_tokens is None:
        return training.beta2
    return _decay_of(batch, training.beta2_half_life_tokens)


def _weight_decay(training: Training, learning_rate: float, batch: float) -> float:
    """Decay w in (1 - rate w) a step, such that weights halve in so many tokens at the peak rate.

    The time scale 1 / (rate w) in steps is what Wang and Aitchison 2024 (arXiv:2405.13698) keep from run to run.
    """
    if training.weight_decay_half_life_tokens is None:
        return training.weight_decay
    return (1 - _decay_of(batch, training.weight_decay_half_life_tokens)) / learning_rate


def _epsilon(training: Training, point: RulePoint) -> float:
    """Epsilon over the root of the ratio of batch to tokens, as marin scales it: gradients shrink as runs grow."""
    reference = training.epsilon_reference
    if reference is None:
        return training.epsilon
    now = point.global_batch_tokens / point.num_tokens
    return reference.epsilon * (reference.global_batch_tokens / reference.num_tokens / now) ** 0.5


def _decays(training: Training, num_steps: int, warmup_steps: int) -> tuple[tuple[int, int], ...]:
    if training.schedule not in ("wsd", "wsd-s"):
        return ()
    ends = [1.0] if training.schedule == "wsd" else training.decays_end_at
    found, before = [], 0
    for end in (round(share * num_steps) for share in ends):
        length = round(training.decay_fraction * (end - before))
        if length < 1:
            raise PlanError(
                f"training.decay_fraction: {training.decay_fraction:g} of {end - before} steps is less than one; raise "
                "it, or lower the batch"
            )
        if end - length < warmup_steps:
            raise PlanError(
                f"training: the warm-up of {warmup_steps} steps reaches into a decay that begins at {end - length}; "
                "shorten it, or lower decay_fraction"
            )
        found.append((end - length, end))
        before = end
    return tuple(found)


def range_warnings(training: Training, points: Sequence[tuple[str, RulePoint]]) -> list[str]:
    """What to say of points beyond the range in which a published rule was found, by point.

    Args:
        training: With the rules.
        points: Labels, and what the rules look at.
    """
    rules: list[tuple[str, PowerRule]] = []
    if training.learning_rate is not None:
        rules.append(("learning_rate", rate_rule(training.learning_rate)))
    if training.global_batch is not None:
        rules.append(("global_batch", batch_rule(training.global_batch)))
    found = []
    for field, rule in rules:
        far = [(label, words) for label, point in points if (words := rule.beyond(point))]
        if far:
            found.append(
                f"training.{field}: rule {rule.name} was found at {rule.range_words()}; beyond that it is a guess, to "
                f"be tuned by its multiplier: {'; '.join(f'{label} ({words})' for label, words in dict(far).items())}"
            )
    return found
