"""What is simulated: a model with its batch, loss and optimiser, a DeepSpeed configuration, and one rank of a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flopsfit_ds.model.architecture import LanguageShape, ModelShape
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan

if TYPE_CHECKING:
    import torch


class Case(Protocol):
    """A training step. Picklable, and built anew in the simulation's own process."""

    @property
    def optimizer(self) -> OptimizerPlan | None:
        """What trains the parameters; None for AdamW."""
        ...

    @property
    def draws_weights_in_constructors(self) -> bool:
        """Whether every layer draws its weights in its own constructor, as partitioned construction needs."""
        ...

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The model, on the default device."""
        ...

    def batch(self, num_sequences: int) -> Any:
        """A micro-batch: a tree of tensors on the CPU; values do not matter."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Loss of the micro-batch, a scalar."""
        ...

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the trainable parameters."""
        ...


@dataclass(frozen=True)
class LanguageModelCase:
    """A language model, trained as `flopsfit_ds.train` trains it.

    Attributes:
        shape: The built-in decoder, a class of the user's called as `model(tokens) -> logits`, or a library's model.
        frozen_parameters: Glob patterns of parameters that are not trained.
        optimizer: What trains the others; None for AdamW.
    """

    shape: LanguageShape
    frozen_parameters: tuple[str, ...] = ()
    optimizer: OptimizerPlan | None = None

    @property
    def draws_weights_in_constructors(self) -> bool:
        """True of the built-in decoder, which ZeRO-3 partitions layer by layer; unknown, hence False, of others."""
        return isinstance(self.shape, ModelShape)

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The model, with what is frozen."""
        from flopsfit_ds.train.model.language import build_language_model
        from flopsfit_ds.train.session import freeze, give_scalars_a_dimension

        model = build_language_model(self.shape, activation_checkpointing)
        freeze(model, self.frozen_parameters)
        give_scalars_a_dimension(model)
        return model

    def batch(self, num_sequences: int) -> Any:
        """Inputs and targets, each [num_sequences, context_length]."""
        import torch

        from flopsfit_ds.train.data.tokens import stays_within_documents

        ids, starts, targets = (
            torch.zeros((num_sequences, self.shape.context_length), dtype=torch.int64) for _ in range(3)
        )
        return (ids, starts) if stays_within_documents(self.shape) else ids, targets

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean cross-entropy."""
        from flopsfit_ds.train.data.tokens import language_model_loss

        return language_model_loss(self.shape, model, batch)

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """That of every run of the sweep."""
        return simulated_optimizer(model, self.optimizer)


@dataclass(frozen=True)
class ClassCase:
    """A class with samples and a loss of the user's own, as `find_optimal` trains them.

    Attributes:
        model_class: Built with `arguments`.
        arguments: The constructor's arguments, sorted by name.
        samples: A collated batch of pairs (inputs, targets); its first sample is repeated.
        loss_fn: `loss_fn(outputs, targets)`, a scalar.
        frozen_parameters: Glob patterns of parameters that are not trained.
        identity: What a result depends on of all these: class, samples and loss are known by their content.
        optimizer: What trains the parameters; None for AdamW.
    """

    model_class: Callable[..., torch.nn.Module]
    arguments: tuple[tuple[str, Any], ...]
    samples: Any
    loss_fn: Callable[[Any, Any], torch.Tensor]
    frozen_parameters: tuple[str, ...]
    identity: str
    optimizer: OptimizerPlan | None = None

    @property
    def draws_weights_in_constructors(self) -> bool:
        """Unknown of a user's class, hence False."""
        return False

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The user's class, with what is frozen; checkpointing is its own business."""
        from flopsfit_ds.train.session import freeze, give_scalars_a_dimension

        assert not activation_checkpointing
        model = self.model_class(**dict(self.arguments))
        freeze(model, self.frozen_parameters)
        give_scalars_a_dimension(model)
        return model

    def batch(self, num_sequences: int) -> Any:
        """So many copies of the first sample."""
        import torch
        from torch.utils import _pytree

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[:1].repeat(num_sequences, *[1] * (tensor.ndim - 1))

        return _pytree.tree_map_only(torch.Tensor, repeated, self.samples)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The user's loss of a batch."""
        from flopsfit_ds.train.data.dataset import call_model

        inputs, targets = batch
        return self.loss_fn(call_model(model, inputs), targets)

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """That of every run of the sweep."""
        return simulated_optimizer(model, self.optimizer)


def simulated_optimizer(model: torch.nn.Module, plan: OptimizerPlan | None = None) -> torch.optim.Optimizer:
    """The optimiser of `flopsfit_ds.train`; its rates do not matter here."""
    from flopsfit_ds.plan.recipe.recipe import Recipe
    from flopsfit_ds.simulate.tensors.states import EightBitStates
    from flopsfit_ds.train.optimizers.build import build_optimizer

    if plan is not None and plan.name == "adamw8bit":
        return EightBitStates(parameter for parameter in model.parameters() if parameter.requires_grad)
    recipe = Recipe(
        learning_rate=1e-3,
        warmup_steps=0,
        final_learning_rate_fraction=1.0,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        gradient_clipping=1.0,
        precision="fp32",
        frozen_parameters=(),
        optimizer=plan,
    )
    return build_optimizer(model, recipe)


@dataclass(frozen=True)
class SimulationJob:
    """One rank of one world.

    Attributes:
        case: What is trained.
        config: DeepSpeed's configuration, with all three batch numbers.
        rank: Of the world.
        world_size: Ranks.
        activation_checkpointing: Whether blocks are recomputed.
        device: `cuda`: as CUDA's kernels would; `cpu`: as this machine's.
        device_memory_bytes: Of the simulated GPU: DeepSpeed takes other ways where little of it is left.
        num_steps: Optimiser steps; the second is the first with everything in place.
    """

    case: Case
    config: dict[str, Any]
    rank: int
    world_size: int
    activation_checkpointing: bool
    device: Literal["cuda", "cpu"]
    device_memory_bytes: int
    num_steps: int = 2
