"""muP and CompleteP: how AdamW's rates, decay and epsilon, initial scales and multipliers follow width and depth.

With m the width over the base's and l the layers over the base's:

| of | initial variance | rate | decay | epsilon | in the forward pass |
|---|---|---|---|---|---|
| embeddings, learned positions | as it is | as it is | as it is | 1 / m | |
| matrices between widths | 1 / m | 1 / m | m | 1 / (m l) | |
| norms and biases | | as it is | as it is | 1 / (m l) | |
| output head | as it is | as it is | as it is | 1 / m | its input over m |
| residual branches | | | | | over l |
| attention scores | | | | | over the heads' width, not its root |

Sources: Yang et al., 2022, arXiv:2203.03466 (Tensor Programs V, table 8: widths, with the head's multiplier, and 1 / d
in attention); Dey et al., 2025, arXiv:2505.01618 (CompleteP, table 1 at alpha = 1: depths, decay and epsilon), whose
code is github.com/EleutherAI/nanoGPT-mup. Decay grows with m because AdamW multiplies it by the rate: what a step takes
of a weight stays the same. The final norm has the epsilon of all norms here, 1 / (m l) where CompleteP has 1 / m.
"""

from __future__ import annotations

from dataclasses import replace

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe.optimizers import KINDS, GroupPlan, Kind, OptimizerPlan
from flopsfit_ds.spec import SweepSpec
from flopsfit_ds.spec.optimizers import Optimizer
from flopsfit_ds.spec.rules import Mup
from flopsfit_ds.spec.sections import ClassModel, DecoderModel

_BETWEEN_WIDTHS: tuple[Kind, ...] = ("matrices", "router")
"""A router's outputs are as many at every width, but it has no multiplier: the rate takes its place (table 3)."""
_OF_BLOCKS: tuple[Kind, ...] = (*_BETWEEN_WIDTHS, "norms")


def scales(mup: Mup, width: int, depth: int | None, head_dim: int | None) -> MupScales:
    """How far a model lies from the base.

    Args:
        mup: The spec's section.
        width: Of the model.
        depth: Layers; None where they are not known.
        head_dim: Width of its heads; None where it is not known.
    """
    known = mup.base_head_dim is not None and head_dim is not None
    return MupScales(
        width / mup.base_width,
        None if mup.base_depth is None or depth is None else depth / mup.base_depth,
        head_dim / mup.base_head_dim if known and head_dim and mup.base_head_dim else 1.0,
    )


def scaled_optimizer(
    optimizer: OptimizerPlan | None, mup: MupScales | None, weight_decay: float
) -> OptimizerPlan | None:
    """The optimiser's plan with the rates, decay and epsilon of each kind of parameters.

    Args:
        optimizer: AdamW's; None for one rate for all.
        mup: How far the model lies from the base; None leaves the plan as it is.
        weight_decay: Of the recipe.
    """
    if mup is None:
        return optimizer
    plan = optimizer or OptimizerPlan("adamw")
    declared = dict(mup.groups)
    groups = []
    for kind in KINDS:
        own = plan.group(kind)
        own = replace(own, parameters=declared.get(kind, ())) if declared else own
        deep = 1.0 if mup.depth is None or kind not in _OF_BLOCKS else mup.depth
        group = replace(own, epsilon_factor=1 / (mup.width * deep))
        if kind in _BETWEEN_WIDTHS:
            decay = own.weight_decay
            if mup.width != 1:
                decay = (weight_decay if decay is None else decay) * mup.width
            group = replace(group, learning_rate_factor=own.learning_rate_factor / mup.width, weight_decay=decay)
        if group != GroupPlan(kind):
            groups.append(group)
    return replace(plan, groups=tuple(groups)) if groups else optimizer


def check_mup(spec: SweepSpec) -> None:
    """See that a spec's rule can be had.

    Raises:
        PlanError: It contradicts what the model's section asks for.
    """
    mup = spec.training.mup
    if mup is None:
        return
    if isinstance(spec.model, ClassModel):
        _check_beside_class(mup, spec.training.optimizer)
    if not isinstance(spec.model, DecoderModel):
        return
    if spec.model.depth_scaled_init and mup.base_depth is not None:
        raise PlanError(
            "training.mup with base_depth beside model.depth_scaled_init: both scale what a layer adds by depth; leave "
            "depth_scaled_init out, or write base_depth: null"
        )


def _check_beside_class(mup: Mup, optimizer: Optimizer | None) -> None:
    """A class's own declaration says what its parameters are, and its own code scores attention."""
    if mup.base_head_dim is not None:
        raise PlanError(
            "training.mup.base_head_dim beside model.family class: what divides its attention scores is not known; "
            "leave base_head_dim out, and let the class keep its heads of one width or divide by their width"
        )
    groups = optimizer.groups if optimizer is not None else None
    given = [kind for kind in KINDS if groups is not None and getattr(groups, kind).parameters]
    if given:
        raise PlanError(
            f"training.optimizer.groups.{given[0]}.parameters beside training.mup: the class says by its mup_groups "
            "what each parameter is; leave parameters out"
        )
