"""Published rules of learning rate and batch: source, equation, and the range each was found in.

Every rule here is a power law of N, D and the batch B (tokens a step): a constant, three exponents, and what N counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.spec.rules import BatchReference, GlobalBatchRule, LearningRateRule, RateReference

Counted = Literal["total", "non-embedding", "matrices"]
_NOTABLE = 1.25
"""Times beyond a range: less changes no published rule's rate by more than its own scatter."""


@dataclass(frozen=True)
class RulePoint:
    """What a rule looks at.

    Attributes:
        num_params: All parameters.
        num_params_non_embedding: Outside vocabulary-sized tables.
        num_params_matrices: In matrices, output head among them; None where unknown.
        num_tokens: Training tokens.
        global_batch_tokens: Tokens an optimiser step; 1 where the batch is what is asked for.
    """

    num_params: float
    num_params_non_embedding: float
    num_params_matrices: float | None
    num_tokens: float
    global_batch_tokens: float = 1.0


@dataclass(frozen=True)
class PowerRule:
    """A value as a product of powers of N, D and B, and where it was found.

    Attributes:
        name: As a spec names it.
        coefficient: The value at N = D = B = 1.
        params: Exponent of N.
        tokens: Exponent of D.
        batch: Exponent of B.
        counted: Which parameters N counts.
        params_range: Smallest and largest N of the points it was fitted to; None where it starts from a reference.
        tokens_range: The same for D; None also where the source varied D with N alone.
    """

    name: str
    coefficient: float
    params: float
    tokens: float
    batch: float = 0.0
    counted: Counted = "total"
    params_range: tuple[float, float] | None = None
    tokens_range: tuple[float, float] | None = None

    def size_of(self, point: RulePoint) -> float:
        """N as the rule counts it.

        Raises:
            PlanError: The model's matrices are not known.
        """
        if self.counted == "matrices":
            if point.num_params_matrices is None:
                raise PlanError(
                    f"training: rule {self.name} counts the parameters in matrices, which are not known of this "
                    "model; write rule: steplaw, or custom with a reference"
                )
            return point.num_params_matrices
        return point.num_params if self.counted == "total" else point.num_params_non_embedding

    def value(self, point: RulePoint) -> float:
        """The rule's value at a point."""
        size = self.size_of(point) if self.params else 1.0
        logs = self.params * math.log(size) + self.tokens * math.log(point.num_tokens)
        return self.coefficient * math.exp(logs + self.batch * math.log(point.global_batch_tokens))

    def beyond(self, point: RulePoint) -> str:
        """How far a point lies outside the range, in words; empty where it lies inside."""
        found = []
        for name, value, span in (
            ("N", self.size_of(point) if self.params else None, self.params_range),
            ("D", point.num_tokens, self.tokens_range),
        ):
            if value is None or span is None:
                continue
            if value * _NOTABLE < span[0]:
                found.append(f"{name} {span[0] / value:.3g} times below")
            elif value > span[1] * _NOTABLE:
                found.append(f"{name} {value / span[1]:.3g} times above")
        return " and ".join(found)

    def range_words(self) -> str:
        """Where the rule was found, in words."""
        spans = ((self.params_range, "parameters"), (self.tokens_range, "tokens"))
        said = [f"{format_count(span[0])} to {format_count(span[1])} {what}" for span, what in spans if span]
        return " and ".join(said)


def step_law_rate() -> PowerRule:
    """Step Law: 1.79 N^-0.713 D^0.307, N without embeddings.

    Li et al. 2025, arXiv:2503.04715, eq. 1. Range: of the dense runs of its public table (github.com/step-law/steplaw,
    data/dense_lr_bs_loss.csv): N from 215 M to 1.07 B, D from 4 B to 100 B. Its schedule ends at a rate of 1e-5.
    """
    return PowerRule("steplaw", 1.79, -0.713, 0.307, 0.0, "non-embedding", _STEP_LAW_PARAMS, _STEP_LAW_TOKENS)


def step_law_batch() -> PowerRule:
    """Step Law: 0.58 D^0.571 tokens. Source and range as `step_law_rate`."""
    return PowerRule("steplaw", 0.58, 0.0, 0.571, tokens_range=_STEP_LAW_TOKENS)


def porian_rate() -> PowerRule:
    """0.0047 (N / 108 M)^(-1/3), N in matrices with the output head, at about 20 tokens a parameter.

    Porian et al. 2024, arXiv:2406.19146, as rounded in plotting.py of its repository
    (github.com/formll/resolving-scaling-law-discrepancies); OLMo-core's model ladder takes the same. Range: the sizes
    that its fit uses, 25 M to 110 M (`get_interpolated_hparams_dfs`), with batches as by `porian_batch`.
    """
    return PowerRule("porian", 0.0047 * 108e6 ** (1 / 3), -1 / 3, 0.0, 0.0, "matrices", _PORIAN_PARAMS)


def porian_batch() -> PowerRule:
    """160 (N / 108 M)^(2/3) sequences of 2048 tokens, N in matrices. Source and range as `porian_rate`."""
    return PowerRule("n^(2/3)", 160 * 2048 * 108e6 ** (-2 / 3), 2 / 3, 0.0, 0.0, "matrices", _PORIAN_PARAMS)


def marin_rate(reference: RateReference) -> PowerRule:
    """(B / B0)^0.5 (D0 / D)^0.3 times the reference's rate.

    The form of marin's heuristic for its scaling runs (github.com/marin-community/marin,
    experiments/grug/moe_mar26). Its constants are of another optimiser (AdamH), so that none is taken over.
    """
    return _from_reference("marin", reference, 0.0, -0.3, 0.5)


def sqrt_rate(reference: RateReference) -> PowerRule:
    """(B / B0)^0.5 (N0 / N)^0.5 (D0 / D)^0.5 times the reference's rate.

    The root of the batch over the tokens keeps the noise of the whole run (Malladi et al. 2022, arXiv:2205.10287, as
    marin's CompletedP form has it); the root of N is muP's 1 / width (Yang et al. 2022, arXiv:2203.03466) at one depth.
    Both are theory: no constant, no fitted range.
    """
    return _from_reference("sqrt-n-d", reference, -0.5, -0.5, 0.5)


def _from_reference(name: str, reference: RateReference, params: float, tokens: float, batch: float) -> PowerRule:
    powers = (
        (reference.num_params, params), (reference.num_tokens, tokens), (reference.global_batch_tokens, batch),
    )  # fmt: skip
    coefficient = reference.learning_rate * _inverse(powers)
    return PowerRule(name, coefficient, params, tokens, batch)


def _inverse(powers: tuple[tuple[float | None, float], ...]) -> float:
    result = 1.0
    for value, exponent in powers:
        if exponent:
            assert value is not None  # the spec refuses a rule without it
            result *= value**-exponent
    return result


def rate_rule(rule: LearningRateRule) -> PowerRule:
    """The rule of a spec's learning rate, its multiplier left out."""
    if rule.rule == "steplaw":
        return step_law_rate()
    if rule.rule == "porian":
        return porian_rate()
    assert rule.reference is not None
    if rule.rule == "marin":
        return marin_rate(rule.reference)
    if rule.rule == "sqrt-n-d":
        return sqrt_rate(rule.reference)
    return _from_reference("custom", rule.reference, rule.params_exponent, rule.tokens_exponent, rule.batch_exponent)


def batch_rule(rule: GlobalBatchRule) -> PowerRule:
    """The rule of a spec's global batch, its multiplier left out.

    `d^0.383` has the exponent of Bergsma et al. 2025 (arXiv:2505.13738), which nanochat takes with a batch of its own
    as reference.
    """
    if rule.rule == "steplaw":
        return step_law_batch()
    if rule.rule == "n^(2/3)":
        return porian_batch()
    reference = rule.reference
    assert isinstance(reference, BatchReference)
    params, tokens = (0.0, 0.383) if rule.rule == "d^0.383" else (rule.params_exponent, rule.tokens_exponent)
    coefficient = reference.global_batch_tokens * _inverse(
        ((reference.num_params, params), (reference.num_tokens, tokens))
    )
    return PowerRule(rule.rule, coefficient, params, tokens)


_STEP_LAW_PARAMS = (215e6, 1.07e9)
_STEP_LAW_TOKENS = (4e9, 100e9)
_PORIAN_PARAMS = (25e6, 110e6)
