"""The optimiser of a run, resolved from the spec's section, and the ZeRO stages at which it trains alike."""

from __future__ import annotations

import fnmatch
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.memory.states import OptimizerMemory, StateTensor, optimizer_memory
from flopsfit_ds.model.architecture import LEARNED_POSITIONS, ModelShape
from flopsfit_ds.spec import PlacementRules
from flopsfit_ds.spec.optimizers import AdamW, FactoryOptimizer, Optimizer, Option, ParameterGroups
from flopsfit_ds.spec.training import Training

Kind = Literal["matrices", "embeddings", "head", "norms", "router"]
KINDS: tuple[Kind, ...] = ("matrices", "embeddings", "head", "norms", "router")
_RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates (Liu et al., 2025, arXiv:2502.16982, section 2.2)."""
_NAMES = {"adamw": "AdamW", "muon": "Muon", "adafactor": "Adafactor", "lion": "Lion", "adamw8bit": "AdamW of 8 bits"}


@dataclass(frozen=True)
class GroupPlan:
    """How one kind of parameters departs from the recipe.

    Attributes:
        kind: Which.
        learning_rate_factor: Its rate over the recipe's.
        weight_decay: Its own; None for the recipe's, and for none of `norms`.
        parameters: Glob patterns of names that belong to it.
        epsilon_factor: AdamW's epsilon over the recipe's.
    """

    kind: Kind
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    parameters: tuple[str, ...] = ()
    epsilon_factor: float = 1.0


@dataclass(frozen=True)
class OptimizerPlan:
    """What trains the parameters, where it is not AdamW with one rate for all.

    Attributes:
        name: As in a spec.
        groups: Kinds of parameters that depart from the recipe.
        options: Of the optimiser itself, by name.
        factory: `package.module:function` of the user's own; empty where it is none.
        source_hash: Of that function and of all that it refers to.
        bytes_an_element: States of the user's own, counted: of matrices and of vectors.
        elementwise: Whether ZeRO may cut a tensor anywhere.
    """

    name: str
    groups: tuple[GroupPlan, ...] = ()
    options: tuple[tuple[str, Option], ...] = ()
    factory: str = ""
    source_hash: str = ""
    bytes_an_element: tuple[float, float] | None = None
    elementwise: bool = True

    def identity(self) -> dict[str, Any]:
        """What it adds to a run's identity: all that changes a loss."""
        values = asdict(self)
        del values["bytes_an_element"], values["elementwise"]
        for group in values["groups"]:
            if group["epsilon_factor"] == 1:
                del group["epsilon_factor"]
        return values

    def group(self, kind: Kind) -> GroupPlan:
        """How a kind departs from the recipe."""
        return next((group for group in self.groups if group.kind == kind), GroupPlan(kind))

    def kind_by_name(self, name: str) -> Kind | None:
        """The kind whose patterns a parameter's name matches; None where none does."""
        for group in self.groups:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in group.parameters):
                return group.kind
        return None

    def option(self, name: str) -> Any:
        """The value of an option."""
        return dict(self.options)[name]


def plan_optimizer(
    optimizer: Optimizer | None, source_hash: str = "", bytes_an_element: tuple[float, float] | None = None
) -> OptimizerPlan | None:
    """What a spec's section means; None for AdamW with one rate for all.

    Args:
        optimizer: The section.
        source_hash: Of a factory of the user's own.
        bytes_an_element: Of its states.
    """
    if optimizer is None:
        return None
    groups = tuple(_departing(optimizer.groups))
    if isinstance(optimizer, AdamW):
        return OptimizerPlan("adamw", groups) if groups else None
    options = optimizer.model_dump(exclude={"name", "groups", "factory", "elementwise", "arguments"})
    if isinstance(optimizer, FactoryOptimizer):
        return OptimizerPlan(
            optimizer.name, groups, tuple(sorted(optimizer.arguments.items())), optimizer.factory, source_hash,
            bytes_an_element, optimizer.elementwise,
        )  # fmt: skip
    elementwise = optimizer.name == "lion"
    return OptimizerPlan(optimizer.name, groups, tuple(sorted(options.items())), elementwise=elementwise)


def _departing(groups: ParameterGroups) -> Iterator[GroupPlan]:
    for kind in KINDS:
        given = getattr(groups, kind)
        found = GroupPlan(kind, given.learning_rate_factor, given.weight_decay, given.parameters)
        if found != GroupPlan(kind):
            yield found


@dataclass(frozen=True)
class GroupKey:
    """What parameters of one group of an optimiser have in common.

    Attributes:
        orthogonal: Muon takes them.
        rate_factor: Their rate over the recipe's.
        scale: Of Muon's updates, beside DeepSpeed's own; no part of decay.
        weight_decay: Their own; None for the recipe's.
        epsilon_factor: AdamW's epsilon over the recipe's.
    """

    orthogonal: bool
    rate_factor: float
    scale: float
    weight_decay: float | None
    epsilon_factor: float = 1.0


def group_of(plan: OptimizerPlan, kind: Kind, shape: tuple[int, ...], takes_matrices: bool) -> GroupKey:
    """The group of a parameter.

    Args:
        plan: Of the optimiser.
        kind: Of the parameter.
        shape: Of the whole tensor.
        takes_matrices: Whether it is a matrix, or one an expert, that Muon could take.
    """
    own = plan.group(kind)
    decay = 0.0 if own.weight_decay is None and kind == "norms" else own.weight_decay
    orthogonal = plan.name == "muon" and kind == "matrices" and takes_matrices
    scale = _muon_scale(plan, shape) if orthogonal else 1.0
    return GroupKey(orthogonal, own.learning_rate_factor, scale, decay, own.epsilon_factor)


def _muon_scale(plan: OptimizerPlan, shape: tuple[int, ...]) -> float:
    """What the rate of a matrix [A, B] is multiplied by, beside DeepSpeed's own sqrt(max(1, A / B))."""
    if plan.option("scale") == "original":
        return 1.0
    rows, columns = shape[-2:]
    return _RMS_OF_ADAMW * math.sqrt(max(rows, columns) / max(1.0, rows / columns))


def why_alone(optimizer: OptimizerPlan | None, gradient_clipping: float) -> str | None:
    """Why a run trains alike at ZeRO-0 only; None where every stage gives the same losses."""
    if optimizer is None or optimizer.elementwise:
        return None
    if optimizer.name == "muon":
        if gradient_clipping == 0:
            return None
        return (
            "DeepSpeed clips Muon's finished updates at ZeRO-1 to 3, and gradients at ZeRO-0; "
            "gradient_clipping: 0 allows every stage"
        )
    if optimizer.name == "adamw8bit":
        return "its 8 bits share a scale by 256 elements, which would span tensors where ZeRO-1 to 3 flatten them"
    if optimizer.name == "factory":
        return (
            f"{optimizer.factory} may look at whole tensors, which ZeRO-1 to 3 cut into flat parts; elementwise: true "
            "says that it does not"
        )
    return "it looks at rows and columns of whole matrices, which ZeRO-1 to 3 cut into flat parts"


def known_optimizer(training: Training, device_kind: str) -> OptimizerPlan | None:
    """What a spec's section means by itself, on a device that it runs on.

    Raises:
        PlanError: It does not run there, or it is code of the user's own, which has to be looked at.
    """
    optimizer = plan_optimizer(training.optimizer)
    if optimizer is not None and optimizer.factory:
        raise PlanError(
            f"training.optimizer.factory: {optimizer.factory} is code of your own; allow it by "
            f"--allow-import {optimizer.factory.partition('.')[0].partition(':')[0]}"
        )
    if optimizer is not None and optimizer.name == "adamw8bit" and device_kind == "cpu":
        raise PlanError(
            "training.optimizer: adamw8bit on a CPU: bitsandbytes has the kernels of its 8-bit AdamW for CUDA alone; "
            "write name: adamw, or hardware.device of a GPU"
        )
    return optimizer


def optimizer_rules(rules: PlacementRules, training: Training) -> PlacementRules:
    """Placement rules with the stages at which this optimiser trains alike, and without offload unless it is AdamW.

    Raises:
        PlanError: They leave nothing.
    """
    optimizer = plan_optimizer(training.optimizer)
    if optimizer is None:
        return rules
    if optimizer.name != "adamw":
        if rules.offload == "always":
            raise PlanError(
                f"placement.offload: always beside training.optimizer: {optimizer.name}; only AdamW's states are "
                "offloaded: write offload: never"
            )
        rules = rules.model_copy(update={"offload": "never"})
    reason = why_alone(optimizer, training.gradient_clipping)
    if reason is None:
        return rules
    if 0 not in rules.zero_stages:
        stages = ", ".join(map(str, rules.zero_stages))
        raise PlanError(
            f"training.optimizer: {optimizer.name} trains alike at ZeRO-0 only, and placement.zero_stages is "
            f"[{stages}]: {reason}; write zero_stages: [0]"
        )
    return rules.model_copy(update={"zero_stages": (0,)})


def optimizer_warnings(rules: PlacementRules, training: Training, optimizer: OptimizerPlan | None) -> list[str]:
    """What the user should know of an optimiser's plan; `rules` as the spec gives them."""
    if optimizer is None:
        return []
    found = []
    reason = why_alone(optimizer, training.gradient_clipping)
    if reason is not None and set(rules.zero_stages) != {0}:
        name = _NAMES.get(optimizer.name, optimizer.factory)
        found.append(f"training.optimizer: {name}: all points are planned at ZeRO-0, since {reason}")
    if optimizer.name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        found.append(
            "training.optimizer: adamw8bit needs bitsandbytes, which is not installed here; where workers run, "
            "pip install 'flopsfit-ds[eightbit]'"
        )
    return found


def decoder_states(optimizer: OptimizerPlan, shape: ModelShape, frozen: set[str]) -> OptimizerMemory:
    """States of the built-in decoder, some of whose parameters are frozen, by their names."""
    tensors = []
    for name, size in shape.tensors():
        if name not in frozen:
            sides = _sides(shape, name, size)
            key = group_of(optimizer, _kind_in_decoder(optimizer, name), sides, takes_matrices=len(sides) == 2)
            tensors.append(StateTensor(size, sum(sides) if len(sides) == 2 else 0, key, key.orthogonal))
    return optimizer_memory(optimizer.name, tensors, optimizer.bytes_an_element)


def decoder_moved_from_head(optimizer: OptimizerPlan, shape: ModelShape, frozen: set[str]) -> bool:
    """Whether a projection of the built-in decoder was trained as a head once, by its rows, and is trained otherwise.

    Until parameters of blocks were told from heads, a matrix with as many rows as there are ids was one; muP came
    with the difference.
    """
    if shape.mup is not None:
        return False
    for name, size in shape.tensors():
        sides = _sides(shape, name, size)
        if name in frozen or not name.startswith("blocks.") or len(sides) < 2 or sides[0] != shape.vocab_size:
            continue
        if optimizer.kind_by_name(name) is None and _differ(optimizer, sides):
            return True
    return False


def _differ(optimizer: OptimizerPlan, sides: tuple[int, ...]) -> bool:
    once, now = (group_of(optimizer, kind, sides, takes_matrices=True) for kind in ("head", "matrices"))
    return once != now


def _sides(shape: ModelShape, name: str, size: int) -> tuple[int, ...]:
    """Rows and columns of a matrix of the decoder, each of which has its width as one side."""
    if "norm" in name:
        return (size,)
    other = size // shape.hidden_size
    return (shape.hidden_size, other) if name.endswith("down.weight") else (other, shape.hidden_size)


def _kind_in_decoder(optimizer: OptimizerPlan, name: str) -> Kind:
    if known := optimizer.kind_by_name(name):
        return known
    if name in ("embedding.weight", LEARNED_POSITIONS):
        return "embeddings"
    return "head" if name == "head.weight" else "norms" if "norm" in name else "matrices"
