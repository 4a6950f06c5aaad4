"""How every point is trained: the section `training` of a spec."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flopsfit_ds.base.presets import Precision
from flopsfit_ds.spec.optimizers import UNREAD, Optimizer
from flopsfit_ds.spec.quantities import Count, Fraction, NonNegative, OpenFraction, Quantity, Seconds, Seed
from flopsfit_ds.spec.rules import RATES_BY_SIZE, Exponent, GlobalBatchRule, LearningRateRule, MupOption
from flopsfit_ds.spec.section import Section

Schedule = Literal["cosine", "linear-to-zero", "wsd", "wsd-s"]
SeedsAt = Literal["smallest", "some", "all"]
DecayShape = Literal["linear", "sqrt", "cosine"]
Switch = Annotated[
    Literal["auto", "off", "on"],
    BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
]
"""YAML reads `on` and `off` as true and false."""

_INSTEAD: dict[str, tuple[str, ...]] = {
    "learning_rate": ("learning_rates", "learning_rate_reference_params", "learning_rate_exponent"),
    "global_batch": ("global_batch_tokens",),
    "warmup_tokens": ("warmup_fraction",),
    "weight_decay_half_life_tokens": ("weight_decay",),
    "beta2_half_life_tokens": ("beta2",),
    "epsilon_reference": ("epsilon",),
}
"""What follows a rule, and the fixed values that then have nothing to say."""


class EpsilonReference(Section):
    """AdamW's epsilon at one point; at others it grows with the root of the number of steps (see `plan.recipe`)."""

    epsilon: Quantity
    """At the reference."""
    global_batch_tokens: Quantity
    """Tokens an optimiser step of the reference."""
    num_tokens: Quantity
    """Training tokens of the reference."""


class Training(Section):
    """How every point is trained; one recipe for the whole sweep."""

    global_batch_tokens: Count = 524288
    """Tokens an optimiser step, rounded to whole sequences."""
    global_batch: GlobalBatchRule | None = None
    """A rule instead, by which the batch follows from the point; one batch a budget."""
    learning_rates: Annotated[tuple[Quantity, ...], Field(min_length=1)] = (3e-4,)
    """Peak learning rates; every point is trained at each."""
    learning_rate: LearningRateRule | None = None
    """A rule instead, by which the peak follows from the point."""
    learning_rate_reference_params: Quantity | None = None
    """With it, the learning rate is scaled by (N / reference)^exponent."""
    learning_rate_exponent: Exponent = -0.25
    """Exponent of that scaling."""
    warmup_fraction: Fraction = 0.02
    """Share of the steps over which the learning rate rises."""
    warmup_tokens: NonNegative | None = None
    """Tokens over which it rises, instead: the same for every point."""
    schedule: Schedule = "cosine"
    """What follows the warm-up: a cosine, a line to zero, a constant rate with one decay at the end (`wsd`), or with a
    decay before each of `decays_end_at` (`wsd-s`, after which the rate is at its peak again)."""
    decay_fraction: Annotated[OpenFraction, Field(gt=0)] = 0.2
    """Of `wsd`: share of the steps over which the rate falls; of `wsd-s`, of the steps since the decay before."""
    decay_shape: DecayShape = "sqrt"
    """Of `wsd` and `wsd-s`: how it falls; `sqrt` is 1 - sqrt(x), Haegele et al. 2024's best."""
    decays_end_at: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 1.0)
    """Of `wsd-s`: at which shares of the steps a decay ends, rising, the last 1."""
    one_trunk: bool = False
    """Of `wsd`: runs that differ in their tokens alone branch off the longest, each for its own decay; each is what it
    would be if trained alone."""
    final_learning_rate_fraction: Fraction = 0.1
    """Learning rate at the end of the schedule, over its peak."""
    weight_decay: NonNegative = 0.1
    """AdamW's decoupled weight decay, on matrices only."""
    weight_decay_half_life_tokens: Quantity | None = None
    """Instead: tokens after which decay alone has halved a weight, at the peak learning rate."""
    beta1: OpenFraction = 0.9
    """AdamW."""
    beta2: OpenFraction = 0.95
    """AdamW."""
    beta2_half_life_tokens: Quantity | None = None
    """Instead: tokens after which a squared gradient counts half in AdamW's second moment."""
    epsilon: Quantity = 1e-8
    """AdamW."""
    epsilon_reference: EpsilonReference | None = None
    """Instead: epsilon at one point, from which it follows at others."""
    optimizer: Optimizer | None = None
    """What trains the parameters; without it, AdamW."""
    mup: MupOption = None
    """Rates, decay and initial scales that follow width and depth from a base, so that one peak rate holds for all
    sizes: `true`, or a base of your own. For AdamW; a class of your own says by `mup_groups` what
    grows. `flopsfit-ds check-mup` shows whether it holds for a model."""
    gradient_clipping: NonNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    precision: Precision = "bf16"
    """`bf16` is autocast over fp32 parameters, the same at every ZeRO stage; `fp32` is full precision. `bf16-pure` is
    DeepSpeed's own bf16, for points that must fit: weights and gradients of the built-in decoder in it, and fp32 master
    weights parted over the GPUs, at ZeRO-1 to 3 under AdamW. Sums over micro-batches and GPUs are then in bf16."""
    tf32: bool = False
    """Whether products of `fp32` on a GPU are made from operands of 10 bits of mantissa; part of a run's identity."""
    compile: Switch = "auto"
    """Whether a model's blocks are compiled; `auto`: the built-in decoder's on GPUs; `on`: those of a model of
    transformers, too. No part of a run's identity: losses differ by rounding. Memory is estimated without. What fails
    to compile, or is placed with offload, is trained as it is, and the record says why."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Every point is trained with each; a seed sets the initial weights and the order of the data."""
    seeds_at: SeedsAt = "all"
    """Which points are trained with every seed; all others with the first. `smallest`: those of the smallest budget, or
    size; `some`: of each budget the middle size, or of each size the fewest tokens."""
    frozen_parameters: tuple[str, ...] = ()
    """Glob patterns of parameter names that are not trained."""
    data_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes of each rank that build batches while the steps before are computed, for a dataset whose items take
    time. The samples of a step stay the same; a dataset that draws at random draws other numbers with processes than
    without, the same in every run. No part of a run's identity."""
    checkpoint_every: Seconds = 600.0
    """Time between checkpoints of a run."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Training:
        given = self.model_fields_set
        for rule, fixed in _INSTEAD.items():
            both = [name for name in fixed if name in given] if getattr(self, rule) is not None else []
            if both:
                raise ValueError(f"{rule} and {both[0]} both stand here; keep one of the two, or write {rule}: null")
        unread = {
            "decay_fraction": ("wsd", "wsd-s"),
            "decay_shape": ("wsd", "wsd-s"),
            "decays_end_at": ("wsd-s",),
            "final_learning_rate_fraction": ("cosine", "wsd", "wsd-s"),
        }
        if "seeds_at" in given and self.seeds_at != "all" and len(self.seeds) == 1:
            raise ValueError(f"seeds_at: {self.seeds_at} says nothing to one seed; write seeds: [0, 1, 2]")
        if self.one_trunk and self.schedule != "wsd":
            raise ValueError(
                f"one_trunk needs schedule: wsd; under {self.schedule} runs differ from their first step on"
            )
        for name, readers in unread.items():
            if name in given and self.schedule not in readers:
                raise ValueError(
                    f"{name} says nothing to schedule {self.schedule}; it belongs to {' and '.join(readers)}"
                )
        for name in self._unread_by_optimizer:
            if name in given and getattr(self, name) is not None:
                raise ValueError(f"{name} says nothing to the optimizer that stands here; leave it out")
        self._check_mup()
        ends = self.decays_end_at
        if ends[-1] != 1 or not all(0 < a < b for a, b in itertools.pairwise(ends)):
            raise ValueError(
                f"decays_end_at {list(ends)} must rise from above 0 and end with 1, such as [0.25, 0.5, 1]"
            )
        return self

    def _check_mup(self) -> None:
        if self.mup is None:
            return
        if self.optimizer is not None and self.optimizer.name != "adamw":
            raise ValueError(
                f"mup beside optimizer {self.optimizer.name}: its rules are known for AdamW alone; write mup: false, "
                "or name: adamw"
            )
        rule = self.learning_rate
        by_size = "learning_rate_reference_params" if self.learning_rate_reference_params is not None else None
        if rule is not None and (rule.rule in RATES_BY_SIZE or rule.params_exponent):
            by_size = f"learning_rate rule {rule.rule}"
        if by_size is not None:
            raise ValueError(
                f"mup beside {by_size}: both lower the rate as models grow; write learning_rates, or a rule without N "
                "(marin, or custom without params_exponent)"
            )

    @property
    def _unread_by_optimizer(self) -> tuple[str, ...]:
        return () if self.optimizer is None else UNREAD.get(self.optimizer.name, ())

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What stands beside a rule or a schedule that does not read it is left out, and can be read back."""
        values = dump(self)
        for rule, fixed in _INSTEAD.items():
            for name in fixed if getattr(self, rule) is not None else (rule,):
                values.pop(name, None)
        if self.schedule not in ("wsd", "wsd-s"):
            values.pop("decay_fraction", None)
            values.pop("decay_shape", None)
        if self.schedule != "wsd-s":
            values.pop("decays_end_at", None)
        for name in self._unread_by_optimizer:
            values.pop(name, None)
        if self.schedule == "linear-to-zero":
            values.pop("final_learning_rate_fraction", None)
        return values
