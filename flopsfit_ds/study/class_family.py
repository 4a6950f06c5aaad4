"""A user's own class in all sizes: found by its size parameter, looked at without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.base.usercode import import_class, source_hash
from flopsfit_ds.model.architecture import ClassShape
from flopsfit_ds.model.flops import conventional_flops
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, plan_optimizer
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES, ClassMeasurement, count_parameters, profile_class
from flopsfit_ds.spec import ClassModel, Training
from flopsfit_ds.train.data.outputs import logits_of
from flopsfit_ds.train.model.cross_entropy import plain_losses

_LARGEST_SIZE = 1 << 24  # beyond all widths, depths and vocabularies: the size does not grow the class
_LOOKS = 6
"""At sizes, for a number of active parameters; two are enough where their share is the same at all sizes."""


class ClassFamily:
    """Sizes of a class.

    Attributes:
        warnings: What could not be measured, for the plan.
    """

    def __init__(
        self,
        model_class: type[nn.Module],
        *,
        class_path: str,
        size_parameter: str,
        size_multiple_of: int,
        arguments: Mapping[str, Any],
        samples: Any,
        loss: Callable[[nn.Module, Any], torch.Tensor],
        training: Training,
        tokens_per_sample: int,
        vocab_size: int | None,
        approximate_flops: bool = False,
        sized_by_active: bool = False,
        optimizer: OptimizerPlan | None = None,
    ) -> None:
        """Note what is needed to build the class.

        Args:
            model_class: The class.
            class_path: `package.module:Class`.
            size_parameter: The constructor's integer argument that grows it.
            size_multiple_of: Its granularity.
            arguments: The other arguments.
            samples: A batch of `LOOKED_AT_SAMPLES`.
            loss: `loss(model, batch)`, a scalar.
            training: The spec's section.
            tokens_per_sample: Predictions a sample counts as.
            vocab_size: Of a language model; None otherwise.
            approximate_flops: Whether FLOPs may be 6 N D where they cannot be counted.
            sized_by_active: Whether sizes asked for mean active parameters.
            optimizer: What trains it; without it, what the section means by itself.

        Raises:
            SpecError: The constructor takes no such parameter.
        """
        _check_parameter(model_class, size_parameter, arguments)
        self._class = model_class
        self._class_path = class_path
        self._size_parameter = size_parameter
        self._multiple = size_multiple_of
        self._arguments = dict(arguments)
        self._samples = samples
        self._loss = loss
        self._training = training
        self._optimizer = optimizer or plan_optimizer(training.optimizer)
        self._tokens_per_sample = tokens_per_sample
        self._vocab_size = vocab_size
        self._approximate_flops = approximate_flops
        self._sized_by_active = sized_by_active
        self._source_hash = source_hash(model_class)
        self._counts: dict[int, int] = {}
        self._models: dict[int, SizedModel] = {}
        self.warnings: list[str] = []

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The size that comes nearest to a number of parameters and whose total is not taken.

        The number means active parameters where the family is sized by them: their share of the total changes slowly
        with the size, so that the total aimed at settles in a few looks.

        Raises:
            SpecError: The class cannot be built, or does not grow with its size parameter.
            PlanError: No size is within a factor of 2, the loss is no scalar, or FLOPs cannot be counted.
        """
        model = self._nearest_by_total(num_params, taken)
        for _ in range(_LOOKS):
            aimed = self._nearest_by_total(num_params * model.num_params / model.num_params_of_design, taken)
            if aimed is model:
                break
            model = aimed
        return model

    def _nearest_by_total(self, num_params: float, taken: Container[int]) -> SizedModel:
        upper = self._smallest_reaching(num_params)
        near = [step for step in range(upper - 3, upper + 4) if step >= 1 and self._count(step) not in taken]
        best = min(near, key=lambda step: abs(self._count(step) / num_params - 1), default=None)
        if best is None or not 0.5 <= self._count(best) / num_params <= 2:
            shown = best or upper
            raise PlanError(
                f"no {self._class.__name__} has about {format_count(num_params)} parameters: with "
                f"{self._size_parameter}={shown * self._multiple} it has {format_count(self._count(shown))}; change "
                "the sizes or model.size_multiple_of"
            )
        return self._sized(best)

    def _smallest_reaching(self, num_params: float) -> int:
        """Smallest multiple with so many parameters: doubling, then bisection; parameters grow with the size."""
        high = 1
        while self._count(high) < num_params:
            if high * self._multiple > _LARGEST_SIZE or (high > 1 and self._count(high) <= self._count(high // 2)):
                raise SpecError(
                    f"{self._class.__name__} does not grow with {self._size_parameter}: at "
                    f"{high * self._multiple} it has {format_count(self._count(high))} parameters"
                )
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._count(middle) < num_params else (low, middle)
        return high

    def _build_arguments(self, step: int) -> dict[str, Any]:
        return self._arguments | {self._size_parameter: step * self._multiple}

    def _count(self, step: int) -> int:
        if step not in self._counts:
            self._counts[step] = count_parameters(self._class, self._build_arguments(step))
        return self._counts[step]

    def _sized(self, step: int) -> SizedModel:
        if step not in self._models:
            measured = profile_class(
                self._class,
                self._build_arguments(step),
                samples=self._samples,
                loss=self._loss,
                precision=self._training.precision,
                frozen_parameters=self._training.frozen_parameters,
                tokens_per_sample=self._tokens_per_sample,
                optimizer=self._optimizer,
            )
            self._models[step] = self._model(step, measured)
        return self._models[step]

    def _model(self, step: int, measured: ClassMeasurement) -> SizedModel:
        flops = measured.flops_per_sample
        if measured.problem is None and not flops:
            measured = replace(measured, problem="it has no operation with known FLOPs")
        if measured.problem is not None:
            flops = self._conventional_flops(measured)
        if measured.unknown_masks:
            self.warnings.append(
                f"{self._class.__name__}: an attention mask has values that are not known without weights: attention "
                "is counted over the full context, windows included"
            )
        profile = measured.profile
        if measured.uneven:
            profile = replace(profile, uneven_gradients=True)
            sharded = (
                f" or at ZeRO-3, which gathers {', '.join(measured.leaves[:2])} whole," if measured.leaves else ","
            )
            self.warnings.append(
                f"{self._class.__name__}: a batch may pass parameters by ({', '.join(measured.uneven[:2])}, ...; "
                f"{len(measured.uneven)} in all), so that GPUs would have gradients of different ones: its points are "
                f"planned at ZeRO-0{sharded} or on one GPU"
            )
        return SizedModel(
            shape=ClassShape(
                class_path=self._class_path,
                arguments=tuple(sorted(self._build_arguments(step).items())),
                size_parameter=self._size_parameter,
                source_hash=self._source_hash,
                vocab_size=self._vocab_size,
                context_length=self._tokens_per_sample,
            ),
            num_params=measured.num_params,
            num_params_non_embedding=measured.num_params - measured.num_params_embedding,
            num_params_trainable=measured.num_params_trainable,
            num_params_active=measured.num_params_active,
            num_params_matrices=measured.num_params_matrices,
            flops_per_token=(flops or 0) / self._tokens_per_sample,
            flops_source="counted" if measured.problem is None else "6nd",
            profile=profile,
            sized_by_active=self._sized_by_active,
        )

    def _conventional_flops(self, measured: ClassMeasurement) -> int:
        """6 N D of a sample, where the user accepts it.

        Raises:
            PlanError: They do not.
        """
        name = self._class.__name__
        if not self._approximate_flops:
            raise PlanError(
                f"{name}: FLOPs cannot be counted without weights ({measured.problem}); let its forward pass take no "
                "decision that depends on values of weights, or accept 6 N D with approximate_flops=True "
                "(model.approximate_flops: true in a spec): far too few where a parameter is used many times a sample, "
                "as in a convolution, and far too many where it is used by some tokens only, as in experts"
            )
        unseen = (
            "; whether a batch may pass parameters by could not be seen either: where it may, several GPUs train it at "
            "ZeRO-0 only (placement.zero_stages: [0])"
        )
        self.warnings.append(
            f"{name}: FLOPs are 6 N D, as accepted by approximate_flops: they cannot be counted ({measured.problem})"
            f"{unseen if not measured.was_seen else ''}"
        )
        frozen = measured.num_params - measured.num_params_trainable
        used = measured.num_params_active or measured.num_params
        return round(conventional_flops(used, self._tokens_per_sample)) - 2 * frozen * (self._tokens_per_sample)


def _check_parameter(model_class: type[nn.Module], size_parameter: str, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(model_class).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in (size_parameter, *arguments):
        if name not in parameters and not takes_any:
            raise SpecError(
                f"{model_class.__name__} takes no argument {name!r}; its constructor takes "
                f"{', '.join(parameters) or 'none'}"
            )


def spec_class_family(
    model: ClassModel, training: Training, sized_by_active: bool = False, optimizer: OptimizerPlan | None = None
) -> ClassFamily:
    """The family of a spec's `model: {family: class}`, called as `model(tokens) -> logits`.

    Raises:
        SpecError: The class cannot be imported, or takes no such argument.
    """
    tokens = torch.arange(LOOKED_AT_SAMPLES * model.context_length) % model.vocab_size  # a model may go by their values
    tokens = tokens.view(LOOKED_AT_SAMPLES, model.context_length)

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return plain_losses(logits_of(module(inputs)), targets).mean()

    return ClassFamily(
        import_class(model.class_path),
        class_path=model.class_path,
        size_parameter=model.size_parameter,
        size_multiple_of=model.size_multiple_of,
        arguments=model.arguments,
        samples=(tokens, tokens),
        loss=loss,
        training=training,
        tokens_per_sample=model.context_length,
        vocab_size=model.vocab_size,
        approximate_flops=model.approximate_flops,
        sized_by_active=sized_by_active,
        optimizer=optimizer,
    )
