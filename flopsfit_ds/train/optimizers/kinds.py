"""Which kind each parameter of any module is of: matrices, embeddings, the head, norms, or a router of experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from flopsfit_ds.memory.states import StateTensor
from flopsfit_ds.plan.recipe.optimizers import GroupKey, Kind, OptimizerPlan, group_of

_ROUTERS = ("router", "gate")
"""Names of layers: Mixtral, Qwen3-MoE and DeepSeek call theirs `gate`, GPT-OSS and Switch `router`."""
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class KnownParameter:
    """A trained parameter, and its kind.

    Attributes:
        name: As the module names it.
        parameter: It.
        kind: Of parameters.
        group: Of the optimiser.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    group: GroupKey


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole tensor, also where ZeRO-3 has parted it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def known_parameters(model: nn.Module, plan: OptimizerPlan) -> list[KnownParameter]:
    """All that is trained, each tensor once, with its kind.

    Args:
        model: Any module.
        plan: Its patterns of names decide before a parameter's looks do.
    """
    num_ids, stacked = _num_ids(model), _stacked(model)
    found: list[KnownParameter] = []
    seen: set[int] = set()
    for name, parameter, owners in _with_owners(model):
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        kind = plan.kind_by_name(name) or _looks_like(
            name, parameter, owners, 0 if id(parameter) in stacked else num_ids
        )
        convolves = any(isinstance(owner, _CONVOLUTIONS) for owner in owners)
        shape = shape_of(parameter)
        # a matrix, or one an expert; Muon was made for neither kernels nor what is multiplied by none
        group = group_of(plan, kind, shape, takes_matrices=len(shape) in (2, 3) and not convolves)
        found.append(KnownParameter(name, parameter, kind, group))
    return found


def moved_from_head(model: nn.Module, plan: OptimizerPlan) -> bool:
    """Whether a layer of a stack was trained as a head once, by its rows, and is trained otherwise now."""
    num_ids, stacked = _num_ids(model), _stacked(model)
    owners = {name: held for name, _, held in _with_owners(model)}
    for known in known_parameters(model, plan):
        if id(known.parameter) not in stacked or plan.kind_by_name(known.name) is not None:
            continue
        once = _looks_like(known.name, known.parameter, owners[known.name], num_ids)
        if once != known.kind and group_of(plan, once, shape_of(known.parameter), takes_matrices=True) != known.group:
            return True
    return False


def _num_ids(model: nn.Module) -> int:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return max((module.num_embeddings for module in tables), default=0)


def _stacked(model: nn.Module) -> set[int]:
    """Parameters in stacks of layers."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return {id(parameter) for stack in stacks for parameter in stack.parameters()}


def _with_owners(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[nn.Module]]]:
    """Every parameter with the modules that hold it; a tied one has two."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    for name, parameter in model.named_parameters():
        yield name, parameter, owners[id(parameter)]


def _looks_like(name: str, parameter: nn.Parameter, owners: Sequence[nn.Module], num_ids: int) -> Kind:
    """The kind; `num_ids` is 0 in a stack of layers, where a width may be that of the vocabulary, and no head is."""
    shape = shape_of(parameter)
    own = name.rpartition(".")[2]
    if any(isinstance(owner, nn.Embedding) for owner in owners) or "pos_emb" in own or "position_embed" in own:
        return "embeddings"
    if len(shape) < 2:
        return "norms"
    if num_ids and any(isinstance(owner, nn.Linear) for owner in owners) and shape[0] == num_ids:
        return "head"
    layer = name.rpartition(".")[0].rpartition(".")[2]
    if layer in _ROUTERS and not _is_gated_layer(owners, shape):
        return "router"
    return "matrices"


def _is_gated_layer(owners: Sequence[nn.Module], shape: tuple[int, ...]) -> bool:
    """A gate as wide as a feed-forward layer gates it; a router has a row for each expert, fewer than it has inputs."""
    return any(isinstance(owner, nn.Linear) for owner in owners) and shape[0] >= shape[-1]


def state_tensors(model: nn.Module, plan: OptimizerPlan) -> list[StateTensor]:
    """What an optimiser holds states of."""
    found = []
    for known in known_parameters(model, plan):
        shape = shape_of(known.parameter)
        size = 1
        for length in shape:
            size *= length
        edges = size // shape[-1] + size // shape[-2] if len(shape) >= 2 and size else 0
        found.append(StateTensor(size, edges, known.group, known.group.orthogonal))
    return found
