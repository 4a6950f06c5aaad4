"""A model of transformers in all sizes, each looked at without weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.plan.family import SizedModel, all_but
from flopsfit_ds.plan.recipe.mup import scaled_optimizer
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, plan_optimizer
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES, ClassMeasurement, count_parameters, profile_class
from flopsfit_ds.spec import HfModel, Training
from flopsfit_ds.study.families.hf_growth import Growth
from flopsfit_ds.study.families.hf_mup import check_architecture, scales_of_config
from flopsfit_ds.study.families.hf_start import read_start
from flopsfit_ds.study.families.kept import kept_measurement
from flopsfit_ds.study.families.measured import nearest_by_active, sized_model, smallest_reaching, was_moved
from flopsfit_ds.train.data.tokens import language_model_loss
from flopsfit_ds.train.model.hf import (
    build_from_config,
    config_hash,
    hf_config,
    library,
    recomputes_blocks,
    router_loss_weight,
)

_NEAR = 4
"""Widths on either side of the one that has the size at the aimed depth."""
_DEPTH_PENALTY = 0.1
"""What a depth off the aimed ratio counts beside a size off the one asked for; as for the built-in decoder."""
_REMEDY = "the sizes, model.head_dim, model.size_multiple_of or model.vocab_size"


class ModelBuilder:
    """A model's constructor, called with the fields of its configuration."""

    def __init__(self, architecture: str) -> None:
        self.__name__ = self._architecture = architecture

    def __call__(self, **fields: Any) -> nn.Module:
        """The model with these fields."""
        return build_from_config(hf_config(self._architecture, fields))


def frozen_beside(model: HfModel, trained: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters of a model at its own size that no pattern matches; none without patterns.

    Raises:
        SpecError: It is no causal language model, or a pattern matches nothing.
    """
    if not trained:
        return ()
    with torch.device("meta"):
        names = [name for name, _ in build_from_config(read_start(model, Path()).config).named_parameters()]
    return all_but(names, trained)


class HfFamily:
    """Sizes of an architecture.

    Attributes:
        warnings: What could not be measured, and what was left out, for the plan.
        vocab_size: Token ids.
    """

    def __init__(
        self,
        model: HfModel,
        training: Training,
        folder: Path,
        sized_by_active: bool = False,
        optimizer: OptimizerPlan | None = None,
        tell: Callable[[str], None] = lambda _said: None,
    ) -> None:
        """Read where sizes start, and how they grow.

        Args:
            model: The spec's section.
            training: The spec's section.
            folder: That the spec's paths are relative to.
            sized_by_active: Whether sizes asked for mean active parameters.
            optimizer: What trains it; without it, what the section means by itself.
            tell: Told what is counted, before each model that takes time.

        Raises:
            SpecError: The architecture or a field of its configuration is not known.
        """
        self._growth = Growth(model, folder)
        self._model, self._training, self._sized_by_active = model, training, sized_by_active
        self._optimizer = optimizer or plan_optimizer(training.optimizer)
        self._name, self._tell = self._growth.start.architecture, tell
        self._counts: dict[tuple[int, int], int] = {}
        self._models: dict[tuple[int, int], SizedModel] = {}
        self.vocab_size = self._growth.vocab_size
        if training.mup is not None:
            check_architecture(training.mup, self._name, set(model.fields))
        self.warnings: list[str] = list(self._growth.start.warnings)
        config = self._growth.start.config
        asked = model.fields.get("output_router_logits", getattr(config, "output_router_logits", None))
        if asked is False:
            self.warnings.append(
                f"{self._name} holds experts, and its configuration leaves out the loss that keeps them in balance; "
                "model.fields: {output_router_logits: true} trains with it"
            )

    def traits(self) -> LossTraits:
        """What is known of the loss: a mean over tokens, but for a router's, which is one over a micro-batch."""
        size = self._growth.step
        config = self._growth.check(self._fields(1, self._growth.aimed_depth(size)), "model")
        if not router_loss_weight(config):
            return LossTraits()
        return LossTraits(depends_on_layout="the router's loss is taken over the tokens of a micro-batch")

    def own_size(self) -> SizedModel:
        """The model at the width and depth of the configuration that it starts from.

        Raises:
            SpecError: The model cannot be built.
            PlanError: FLOPs cannot be counted.
        """
        start = self._growth.start
        width, depth = int(start.get("hidden_size")), int(start.get("num_hidden_layers"))
        return self._look(self._growth.fields(width, depth), f"model: {self._name}")

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The size that comes nearest to a number of parameters and whose total is not taken.

        The number means active parameters where the family is sized by them.

        Raises:
            SpecError: The model cannot be built, or does not grow with its size parameter.
            PlanError: No size is within a factor of 2, no heads divide one, or FLOPs cannot be counted.
        """
        return nearest_by_active(
            lambda aimed: self._nearest_by_total(aimed, taken), num_params, self._name, self._size_of, _REMEDY
        )

    def _size_of(self, model: SizedModel) -> str:
        step, depth = next(at for at, sized in self._models.items() if sized is model)
        return f"{self._model.size_parameter}={step * self._growth.step} and {depth} layers"

    def width_near(self, width: float) -> int:
        """The size of the family nearest to one."""
        return max(1, round(width / self._growth.step)) * self._growth.step

    def shape_at(self, width: int, depth: int) -> HfShape:
        """The shape of a width and a depth.

        Raises:
            PlanError: No heads divide it.
        """
        if width % self._growth.step:
            raise PlanError(
                f"a width of {width} is no multiple of {self._growth.step}, what heads that share keys take of it"
            )
        return self._shape(
            self._growth.fields(width, depth), f"model: {self._name} of width {width} and {depth} layers"
        )

    def _shape(self, fields: dict[str, Any], where: str) -> HfShape:
        config = self._growth.check(fields, where)
        mup = self._training.mup
        return HfShape(
            architecture=self._name,
            fields=json.dumps(fields, sort_keys=True),
            config_hash=config_hash(config),
            library=library(),
            vocab_size=self.vocab_size,
            context_length=self._model.context_length,
            router_loss_weight=router_loss_weight(config),
            mup=None if mup is None else scales_of_config(mup, config),
        )

    def _nearest_by_total(self, num_params: float, taken: Container[int]) -> SizedModel:
        growth = self._growth
        upper = smallest_reaching(
            lambda step: self._count(step, growth.aimed_depth(step * growth.step)),
            num_params, growth.step, self._name, self._model.size_parameter,
        )  # fmt: skip
        best: tuple[bool, float, int, int] | None = None
        for step in range(max(1, upper - _NEAR), upper + _NEAR + 1):
            aimed = growth.aimed_depth(step * growth.step)
            for depth in self._depths(step, aimed, num_params):
                if self._count(step, depth) in taken:
                    continue
                off = abs(math.log(self._count(step, depth) / num_params))
                score = off + _DEPTH_PENALTY * abs(math.log(depth / aimed))
                ranked = off > math.log(2), score, step, depth
                best = ranked if best is None else min(best, ranked)
        if best is None:
            size = upper * growth.step
            raise PlanError(
                f"no other {self._name} has about {format_count(num_params)} parameters: with "
                f"{self._model.size_parameter}={size} it has "
                f"{format_count(self._count(upper, growth.aimed_depth(size)))}; change {_REMEDY}"
            )
        return self._sized(*best[2:])

    def _depths(self, step: int, aimed: int, num_params: float) -> list[int]:
        """Depths of a width within half an octave of the aimed one, next to the one that has the size."""
        if not self._growth.varies_depth:
            return [aimed]
        low, high = max(1, math.floor(aimed / math.sqrt(2))), math.ceil(aimed * math.sqrt(2))
        first, last = low, high
        while first < last:
            middle = (first + last) // 2
            first, last = (middle + 1, last) if self._count(step, middle) < num_params else (first, middle)
        return [depth for depth in range(first - 2, first + 3) if low <= depth <= high]

    def _fields(self, step: int, depth: int) -> dict[str, Any]:
        return self._growth.fields(step * self._growth.step, depth)

    def _where(self, step: int, depth: int) -> str:
        return f"model: {self._name} of {self._model.size_parameter} {step * self._growth.step} and {depth} layers"

    def _count(self, step: int, depth: int) -> int:
        if (step, depth) not in self._counts:
            fields = self._fields(step, depth)
            self._growth.check(fields, self._where(step, depth))
            self._counts[step, depth] = count_parameters(ModelBuilder(self._name), fields)
        return self._counts[step, depth]

    def _sized(self, step: int, depth: int) -> SizedModel:
        if (step, depth) not in self._models:
            self._models[step, depth] = self._look(self._fields(step, depth), self._where(step, depth))
        return self._models[step, depth]

    def _look(self, fields: dict[str, Any], where: str) -> SizedModel:
        shape, context = self._shape(fields, where), self._model.context_length
        tokens = torch.arange(LOOKED_AT_SAMPLES * context) % self.vocab_size  # a model may go by their values
        tokens = tokens.view(LOOKED_AT_SAMPLES, context)
        optimizer = scaled_optimizer(self._optimizer, shape.mup, self._training.weight_decay)

        def measure() -> ClassMeasurement:
            self._tell(f"counting operations and memory without weights, {where.removeprefix('model: ')}")
            return profile_class(
                ModelBuilder(self._name),
                fields,
                samples=(tokens, tokens),
                loss=lambda module, batch: language_model_loss(shape, module, batch),
                precision=self._training.precision,
                frozen_parameters=self._training.frozen_parameters,
                tokens_per_sample=context,
                optimizer=optimizer,
                recomputes_blocks=recomputes_blocks,
            )

        measured = kept_measurement(shape, self._training, optimizer, measure)
        return sized_model(
            measured.profile.name,
            shape,
            measured,
            tokens_per_sample=context,
            approximate_flops=self._model.approximate_flops,
            sized_by_active=self._sized_by_active,
            moved_from_head=shape.mup is None
            and was_moved(ModelBuilder(self._name), fields, self._training, self._optimizer),
            warnings=self.warnings,
        )
