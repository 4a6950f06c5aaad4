"""Which optimiser trains a sweep: the section `training.optimizer` of a spec; without it, AdamW for everything."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flopsfit_ds.base.units import parse_quantity
from flopsfit_ds.spec.quantities import NonNegative, OpenFraction, Quantity, number_schema
from flopsfit_ds.spec.section import Section

Option = str | int | float | bool | None


class GroupOptions(Section):
    """How one kind of parameters departs from the recipe."""

    learning_rate_factor: Quantity = 1.0
    """Its learning rate over that of the recipe, all through the schedule."""
    weight_decay: NonNegative | None = None
    """Its decay; without it the recipe's, and for `norms` none."""
    parameters: tuple[str, ...] = ()
    """Glob patterns of parameter names that belong to this kind, whatever they look like."""


class ParameterGroups(Section):
    """Kinds of parameters that may be trained apart; a kind that a model does not have says nothing."""

    matrices: GroupOptions = GroupOptions()
    """Weights of two dimensions and more that are none of the others: projections, convolutions, experts."""
    embeddings: GroupOptions = GroupOptions()
    """Tables of tokens and of positions; a head that shares the table's weight is of this kind."""
    head: GroupOptions = GroupOptions()
    """A linear layer with a row for every token id."""
    norms: GroupOptions = GroupOptions()
    """Whatever has fewer than two dimensions: norms, biases, scalars."""
    router: GroupOptions = GroupOptions()
    """What sends tokens to experts: layers named `router` or `gate`."""


class AdamW(Section):
    """AdamW (Loshchilov and Hutter, 2019) for all, as without this section, with kinds of parameters apart."""

    name: Literal["adamw"]
    """Which optimiser."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


class Muon(Section):
    """Muon (Jordan et al., 2024) for `matrices`, AdamW for the rest and for convolutions; DeepSpeed's own class.

    It updates whole matrices. DeepSpeed clips Muon's finished updates at ZeRO-1 to 3 and gradients at ZeRO-0, so that
    with `gradient_clipping` above 0 all points are planned at ZeRO-0.
    """

    name: Literal["muon"]
    """Which optimiser."""
    momentum: OpenFraction = 0.95
    """Of the gradients, with Nesterov's step."""
    scale: Literal["match-rms-adamw", "original"] = "match-rms-adamw"
    """Of an update of shape [A, B]: 0.2 sqrt(max(A, B)), as large as AdamW's, whose rate and decay then serve for both
    (Liu et al., 2025, arXiv:2502.16982); or sqrt(max(1, A / B)) as first published, at rates near 0.02."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


class Adafactor(Section):
    """Adafactor (Shazeer and Stern, 2018) as in `torch.optim`: second moments by rows and columns; at ZeRO-0 only.

    A step is the learning rate times the root mean square of the tensor itself, and the rate is at most 1/sqrt(step).
    """

    name: Literal["adafactor"]
    """Which optimiser."""
    decay_exponent: Annotated[float, BeforeValidator(parse_quantity), Field(le=0), number_schema([-0.8])] = -0.8
    """Of the second moments: at step t they keep 1 - t^exponent of what they were."""
    clip_threshold: Annotated[Quantity, Field(ge=1)] = 1.0
    """Largest root mean square of an update."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


class Lion(Section):
    """Lion (Chen et al., 2023, arXiv:2302.06675): the sign of a momentum. Its authors take AdamW's rate over 3 to 10,
    as much more decay, and beta2 0.99."""

    name: Literal["lion"]
    """Which optimiser."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


class AdamW8bit(Section):
    """AdamW with moments of 8 bits (Dettmers et al., 2022), by bitsandbytes; for CUDA, and at ZeRO-0 only."""

    name: Literal["adamw8bit"]
    """Which optimiser."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


class FactoryOptimizer(Section):
    """A function of the user's own, called as `factory(groups, learning_rate, **arguments)`; needs `--allow-import`.

    `groups` are dictionaries as `torch.optim` takes them: `params`, `lr` and `weight_decay`. The learning rate of every
    group is set before each step.
    """

    name: Literal["factory"]
    """Which optimiser."""
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`."""
    arguments: dict[str, Option] = Field(default={})
    """Its further arguments."""
    elementwise: bool = False
    """Whether each element is updated by its own gradients alone, whatever tensor it lies in: then ZeRO may cut tensors
    anywhere. Else all points are planned at ZeRO-0."""
    groups: ParameterGroups = ParameterGroups()
    """Kinds of parameters with a rate or a decay of their own."""


Optimizer = Annotated[
    AdamW | Muon | Adafactor | Lion | AdamW8bit | FactoryOptimizer,
    Field(discriminator="name"),
]
UNREAD: dict[str, tuple[str, ...]] = {
    "adafactor": ("beta1", "beta2", "beta2_half_life_tokens", "epsilon", "epsilon_reference"),
    "lion": ("epsilon", "epsilon_reference"),
    "factory": ("beta1", "beta2", "beta2_half_life_tokens", "epsilon", "epsilon_reference"),
}
"""Fields of `training` that an optimiser does not read."""
