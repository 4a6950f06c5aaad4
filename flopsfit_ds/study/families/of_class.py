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
from flopsfit_ds.model.architecture import ClassShape, MupScales
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.recipe.mup import scaled_optimizer
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, plan_optimizer
from flopsfit_ds.simulate.profile import (
    LOOKED_AT_SAMPLES,
    ClassMeasurement,
    build_without_weights,
    count_parameters,
    profile_class,
)
from flopsfit_ds.spec import ClassModel, Training
from flopsfit_ds.study.families.class_mup import scales_of_class
from flopsfit_ds.study.families.measured import (
    flops_in_batch,
    nearest_by_active,
    sized_model,
    smallest_reaching,
    was_moved,
)
from flopsfit_ds.train.data.outputs import logits_of
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.model.mup import ScaledClass, declared_by


class ClassFamily:
    """Sizes of a class.

    Attributes:
        warnings: What could not be measured, for the plan.
    """

    def __init__(
        self,
        model_class: Callable[..., nn.Module],
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
        self._measured: dict[int, ClassMeasurement] = {}
        self._models: dict[int, SizedModel] = {}
        self._scales: dict[int, MupScales] = {}
        self._batch: tuple[Any, int] | None = None
        self.warnings: list[str] = []

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The size that comes nearest to a number of parameters and whose total is not taken.

        The number means active parameters where the family is sized by them: their share of the total changes slowly
        with the size, so that the total aimed at settles in a few looks.

        Raises:
            SpecError: The class cannot be built, or does not grow with its size parameter.
            PlanError: No size is within a factor of 2, the loss is no scalar, or FLOPs cannot be counted.
        """
        return nearest_by_active(
            lambda aimed: self._nearest_by_total(aimed, taken),
            num_params,
            self._class.__name__,
            lambda model: self._size_of(model.num_params),
            "the sizes or model.size_multiple_of",
        )

    def count_in(self, batch: Any, num_samples: int) -> None:
        """Count the FLOPs of a sample as one of this batch, from now on and for all sizes."""
        self._batch = batch, num_samples
        self._models.clear()

    def width_near(self, width: float) -> int:
        """The declared width of the size of the family whose is nearest to one.

        Raises:
            PlanError: The class declares none.
        """
        upper = smallest_reaching(
            self._width, max(width, 1), self._multiple, self._class.__name__, self._size_parameter, "its declared width"
        )
        steps = range(max(1, upper - 1), upper + 1)
        return min((self._width(step) for step in steps), key=lambda found: abs(found - width))

    def shape_at(self, width: int, depth: int) -> ClassShape:
        """The shape of the size with a declared width; depth is the class's own.

        Raises:
            PlanError: No size has it.
        """
        found = smallest_reaching(
            self._width, width, self._multiple, self._class.__name__, self._size_parameter, "its declared width"
        )
        if self._width(found) != width:
            raise PlanError(
                f"a width of {width} is none of {self._class.__name__}'s; the next one is {self._width(found)}, with "
                f"{self._size_parameter}={found * self._multiple}"
            )
        return self._shape(found)

    def _width(self, step: int) -> int:
        return declared_by(build_without_weights(self._class, self._build_arguments(step))).width

    def _mup(self, step: int) -> MupScales | None:
        mup = self._training.mup
        if mup is None:
            return None
        if step not in self._scales:
            own, wider = self._build_arguments(step), self._build_arguments(2 * step)
            self._scales[step] = scales_of_class(mup, self._class, own, wider)
        return self._scales[step]

    def _size_of(self, num_params: int) -> str:
        step = next(step for step, count in self._counts.items() if count == num_params)
        return f"{self._size_parameter}={step * self._multiple}"

    def _nearest_by_total(self, num_params: float, taken: Container[int]) -> SizedModel:
        upper = smallest_reaching(self._count, num_params, self._multiple, self._class.__name__, self._size_parameter)
        near = [step for step in range(upper - 3, upper + 4) if step >= 1 and self._count(step) not in taken]
        best = min(near, key=lambda step: abs(self._count(step) / num_params - 1), default=None)
        if best is None:
            raise PlanError(
                f"no other {self._class.__name__} has about {format_count(num_params)} parameters: with "
                f"{self._size_of(self._count(upper))} it has {format_count(self._count(upper))}; change the sizes or "
                "model.size_multiple_of"
            )
        return self._sized(best)

    def _build_arguments(self, step: int) -> dict[str, Any]:
        return self._arguments | {self._size_parameter: step * self._multiple}

    def _count(self, step: int) -> int:
        if step not in self._counts:
            self._counts[step] = count_parameters(self._class, self._build_arguments(step))
        return self._counts[step]

    def _sized(self, step: int) -> SizedModel:
        if step not in self._models:
            measured = self._measure(step)
            if self._batch is not None and measured.problem is None:
                measured = replace(measured, flops_per_sample=self._flops_in(*self._batch, self._build_arguments(step)))
            self._models[step] = self._model(step, measured)
        return self._models[step]

    def _flops_in(self, batch: Any, num_samples: int, arguments: Mapping[str, Any]) -> int:
        try:
            return flops_in_batch(
                self._class, arguments, batch=batch, num_samples=num_samples, loss=self._loss,
                frozen_parameters=self._training.frozen_parameters,
            )  # fmt: skip
        except Exception as error:  # of the user's own code, which ran at another size
            raise PlanError(
                f"{self._class.__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())}): FLOPs "
                f"cannot be counted in a batch of {num_samples} samples ({type(error).__name__}: {error})"
            ) from error

    def _measure(self, step: int) -> ClassMeasurement:
        if step not in self._measured:
            mup = self._mup(step)
            self._measured[step] = profile_class(
                self._class if mup is None else ScaledClass(self._class, mup),
                self._build_arguments(step),
                samples=self._samples,
                loss=self._loss,
                precision=self._training.precision,
                frozen_parameters=self._training.frozen_parameters,
                tokens_per_sample=self._tokens_per_sample,
                optimizer=scaled_optimizer(self._optimizer, mup, self._training.weight_decay),
                # one size tells whether there is something of pairs, at all sizes
                looks_at_pairs=all(each.profile.pair_saved_bytes for each in self._measured.values()),
            )
        return self._measured[step]

    def _model(self, step: int, measured: ClassMeasurement) -> SizedModel:
        return sized_model(
            self._class.__name__,
            self._shape(step),
            measured,
            tokens_per_sample=self._tokens_per_sample,
            approximate_flops=self._approximate_flops,
            sized_by_active=self._sized_by_active,
            moved_from_head=self._training.mup is None
            and was_moved(self._class, self._build_arguments(step), self._training, self._optimizer),
            warnings=self.warnings,
        )

    def _shape(self, step: int) -> ClassShape:
        return ClassShape(
            class_path=self._class_path,
            arguments=tuple(sorted(self._build_arguments(step).items())),
            size_parameter=self._size_parameter,
            source_hash=self._source_hash,
            vocab_size=self._vocab_size,
            context_length=self._tokens_per_sample,
            mup=self._mup(step),
        )


def _check_parameter(model_class: Callable[..., nn.Module], size_parameter: str, arguments: Mapping[str, Any]) -> None:
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
