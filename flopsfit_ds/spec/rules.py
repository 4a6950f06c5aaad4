"""Rules that learning rate and batch follow from one point to the next, as a spec names them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from flopsfit_ds.base.units import parse_quantity
from flopsfit_ds.spec.quantities import Count, Quantity, number_schema
from flopsfit_ds.spec.section import Section

RateRuleName = Literal["steplaw", "porian", "marin", "sqrt-n-d", "custom"]
BatchRuleName = Literal["steplaw", "d^0.383", "n^(2/3)", "custom"]
Exponent = Annotated[float, BeforeValidator(parse_quantity), number_schema([-0.25])]

PUBLISHED = ("steplaw", "porian", "n^(2/3)")
"""Rules that come with their constant; all others need a reference, of the same data and optimiser, to start from."""
RATES_BY_SIZE = ("steplaw", "porian", "sqrt-n-d")
"""Rules of the rate that have N in them."""
REFERENCE_NEEDS: dict[str, tuple[str, ...]] = {
    "marin": ("num_tokens", "global_batch_tokens"),
    "sqrt-n-d": ("num_params", "num_tokens", "global_batch_tokens"),
    "d^0.383": ("num_tokens",),
}
"""What a rule without a constant must know of the point that it starts from."""


class RateReference(Section):
    """A point whose best learning rate is known."""

    learning_rate: Quantity
    """Its peak learning rate."""
    num_params: Quantity | None = None
    """Its parameters, all counted; needed where the rule looks at N."""
    num_tokens: Quantity | None = None
    """Its training tokens; needed where the rule looks at D."""
    global_batch_tokens: Quantity | None = None
    """Its tokens an optimiser step; needed where the rule looks at the batch."""


class BatchReference(Section):
    """A point whose best global batch is known."""

    global_batch_tokens: Quantity
    """Its tokens an optimiser step."""
    num_params: Quantity | None = None
    """Its parameters, all counted; needed where the rule looks at N."""
    num_tokens: Quantity | None = None
    """Its training tokens; needed where the rule looks at D."""


class RateTuning(Section):
    """A short sweep of its own, on small sizes, that sets the rule's multiplier before anything else is planned."""

    num_params: Annotated[tuple[Quantity, ...], Field(min_length=2)]
    """Sizes, all parameters counted: two or more, to show whether one multiplier holds from one to the next."""
    tokens_per_parameter: Quantity = 20
    """Training tokens for each parameter."""
    multipliers: Annotated[tuple[Quantity, ...], Field(min_length=3)] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Tried at each size; the best of each must lie between two others."""


class LearningRateRule(Section):
    """A peak learning rate that follows from each point; `flopsfit_ds.plan.recipe.rules` has sources and ranges."""

    rule: RateRuleName
    """`steplaw` and `porian` have published constants; `marin` and `sqrt-n-d` start from a reference; `custom` has
    exponents of your own too."""
    multiplier: Quantity = 1.0
    """Over the rule's rate, as tuned on your data."""
    multipliers: Annotated[tuple[Quantity, ...], Field(min_length=1)] | None = None
    """Several instead: every point is trained at each."""
    tune: RateTuning | None = None
    """Instead: find the multiplier by a short sweep, which `sweep` trains first."""
    reference: RateReference | None = None
    """Where `marin`, `sqrt-n-d` and `custom` start from."""
    params_exponent: Exponent = 0.0
    """Of `custom`: exponent of N over the reference's."""
    tokens_exponent: Exponent = 0.0
    """Of `custom`: exponent of D over the reference's."""
    batch_exponent: Exponent = 0.0
    """Of `custom`: exponent of the batch over the reference's."""

    @model_validator(mode="after")
    def _complete(self) -> LearningRateRule:
        ways = [name for name in ("multipliers", "tune") if getattr(self, name) is not None]
        ways = ["multiplier", *ways] if self.multiplier != 1 else ways
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} stand here together; keep one of them")
        exponents = {
            "num_params": self.params_exponent,
            "num_tokens": self.tokens_exponent,
            "global_batch_tokens": self.batch_exponent,
        }
        _check_rule(self.rule, self.reference, exponents, "learning_rate")
        return self


class Mup(Section):
    """muP (Yang et al., 2022) over widths and CompleteP (Dey et al., 2025) over depths: a rate that is best at the base
    stays the best; `flopsfit_ds.plan.recipe.mup` has the rules. A model of the base's shape is what it is without."""

    base_width: Count = 256
    """Width at which rate, decay and initial scale mean what they say; 256 is CompleteP's own."""
    base_depth: Count | None = 2
    """Layers at which they do, as CompleteP's own; null leaves depth as it is (muP alone)."""
    base_head_dim: Count | None = None
    """Width of a head at which attention scores are divided by its root, and by its ratio to this beyond; without it,
    that of every model, whose heads then must be of one width."""


def _as_section(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


MupOption = Annotated[Mup | None, BeforeValidator(_as_section, json_schema_input_type=Mup | bool | None)]
"""`true` is the base of CompleteP's paper."""


class GlobalBatchRule(Section):
    """A global batch that follows from each point, or from the middle of a budget, whose points share one."""

    rule: BatchRuleName
    """`steplaw` and `n^(2/3)` have published constants; `d^0.383` starts from a reference; `custom` has exponents of
    your own too."""
    multiplier: Quantity = 1.0
    """Over the rule's batch, as tuned on your data."""
    reference: BatchReference | None = None
    """Where `d^0.383` and `custom` start from."""
    params_exponent: Exponent = 0.0
    """Of `custom`: exponent of N over the reference's."""
    tokens_exponent: Exponent = 0.0
    """Of `custom`: exponent of D over the reference's."""

    @model_validator(mode="after")
    def _complete(self) -> GlobalBatchRule:
        exponents = {"num_params": self.params_exponent, "num_tokens": self.tokens_exponent}
        _check_rule(self.rule, self.reference, exponents, "global_batch_tokens")
        return self


def _check_rule(
    rule: str, reference: RateReference | BatchReference | None, exponents: dict[str, float], value: str
) -> None:
    """See that a rule has what it starts from, and nothing that it does not read."""
    if rule != "custom" and any(exponents.values()):
        raise ValueError(f"rule {rule} has exponents of its own; write rule: custom to give others")
    if rule in PUBLISHED:
        if reference is not None:
            raise ValueError(f"rule {rule} has a published constant and reads no reference; scale it by multiplier")
        return
    needed = REFERENCE_NEEDS.get(rule) or tuple(name for name, exponent in exponents.items() if exponent)
    missing = [name for name in needed if reference is None or getattr(reference, name) is None]
    if reference is None or missing:
        raise ValueError(
            f"rule {rule} has no constant of its own and needs a point to start from; write reference: "
            f"{{{', '.join(f'{name}: ...' for name in (value, *needed))}}}"
        )
