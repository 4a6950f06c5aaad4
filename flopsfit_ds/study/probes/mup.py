"""The coordinate check of a spec's model: which sizes, at which rate, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.usercode import check_allowed, import_class
from flopsfit_ds.model.architecture import LanguageShape
from flopsfit_ds.plan.family import DecoderFamily, decoder_family
from flopsfit_ds.plan.recipe.mup import check_mup
from flopsfit_ds.plan.recipe.optimizers import plan_optimizer
from flopsfit_ds.plan.recipe.recipe import peak_rates
from flopsfit_ds.plan.recipe.rules import RulePoint
from flopsfit_ds.spec import ClassModel, HfModel, SweepSpec
from flopsfit_ds.study.families.of_class import ClassFamily, spec_class_family
from flopsfit_ds.study.families.of_hf import HfFamily
from flopsfit_ds.study.probes.coordinates import Coordinates, Over, check_coordinates

RISE, FALL = 0.3, -0.5
"""Exponents in width or depth between which an activation holds still. Over widths of 32 to 256 at rates of 1e-3 and
4e-3 the decoder's blocks moved by powers of -.11 to .01 with the rule and of .87 to 1.22 without; its logits by -.26 to
-.31 and .87 to 1.14: what the head's initial weights add falls by the root of the width, as it should."""
_SHARES_OF_WIDTH = (0.25, 0.5, 1, 2)
_TIMES_DEPTH = (1, 2, 4)
_DEPTH_OF_WIDTHS = 2


@dataclass(frozen=True)
class MupCheck:
    """What a check came to.

    Attributes:
        learning_rate: Peak at the base.
        pairs: With the rule and without, over widths, and over depths where the rule has a base of them.
    """

    learning_rate: float
    pairs: tuple[tuple[Coordinates, Coordinates], ...]

    @property
    def drifting(self) -> tuple[str, ...]:
        """What does not hold still with the rule, in words."""
        return tuple(
            f"{name} moves as {ruled.over}^{ruled.slope(name):+.2f}"
            for ruled, _ in self.pairs
            for name in judged(ruled)
            if not FALL <= ruled.slope(name) <= RISE
        )


def judged(found: Coordinates) -> tuple[str, ...]:
    """Activations that should hold still: over depths not what the first block gives, a smaller part of the whole."""
    return tuple(name for name in found.changes if found.over == "width" or name != "first block")


def _family(spec: SweepSpec, spec_folder: Path, allow_import: Sequence[str]) -> DecoderFamily | HfFamily | ClassFamily:
    if isinstance(spec.model, ClassModel):
        check_allowed(spec.model.class_path, allow_import)
        import_class(spec.model.class_path, allow_import)
        return spec_class_family(spec.model, spec.training)
    if isinstance(spec.model, HfModel):
        return HfFamily(spec.model, spec.training, spec_folder)
    whole = spec.model.model_copy(update={"attention_across_documents": True})  # the batch here has no documents
    return decoder_family(spec.model_copy(update={"model": whole}), None)


def check_spec(
    spec: SweepSpec,
    *,
    spec_folder: Path,
    widths: Sequence[int],
    depths: Sequence[int],
    num_steps: int,
    num_seeds: int,
    allow_import: Sequence[str] = (),
) -> MupCheck:
    """Train the model of a spec at several widths, and depths, for a few steps, with the rule and without.

    Args:
        spec: With `training.mup`.
        spec_folder: That the spec's paths are relative to.
        widths: Two or more; without any, a quarter of the base's to twice of it.
        depths: Layers, two or more; without any, the base's to four times of them.
        num_steps: Of each model.
        num_seeds: Whose changes are averaged.
        allow_import: Packages that the user allowed, for a class of the user's own; it grows in width alone.

    Raises:
        SpecError: Its class may not, or cannot be imported.
        PlanError: The spec has no such rule, fewer than two sizes are given, or no heads divide one.
    """
    training = spec.training
    mup = training.mup
    if mup is None:
        raise PlanError("training.mup is off in this spec, and there is nothing to check; write training.mup=true")
    check_mup(spec)
    family = _family(spec, spec_folder, allow_import)
    has_depths = mup.base_depth is not None and not isinstance(family, ClassFamily)
    if depths and isinstance(family, ClassFamily):
        raise PlanError("--depths: a class grows by its size parameter, and is checked over widths; leave --depths out")
    widths = widths or sorted({family.width_near(mup.base_width * share) for share in _SHARES_OF_WIDTH})
    for name, given in (("--widths", widths), ("--depths", depths)):
        if given and len(set(given)) < 2:
            raise PlanError(f"{name}: an exponent takes two sizes or more; found {', '.join(map(str, given))}")
    if depths and mup.base_depth is None:
        raise PlanError("--depths: training.mup has no base_depth, so that depth is left as it is; leave --depths out")
    base = RulePoint(1.0, 1.0, 1.0, training.global_batch_tokens, training.global_batch_tokens)
    rate = peak_rates(training, base)[0]
    across = family.width_near(mup.base_width)
    at_widths = [(width, family.shape_at(width, mup.base_depth or _DEPTH_OF_WIDTHS)) for width in sorted(set(widths))]
    depths = sorted(set(depths)) or [times * (mup.base_depth or 0) for times in _TIMES_DEPTH]
    at_depths = [(depth, family.shape_at(across, depth)) for depth in depths if has_depths]
    optimizer = plan_optimizer(training.optimizer)
    grown: tuple[tuple[Over, Sequence[tuple[int, LanguageShape]]], ...] = (("width", at_widths), ("depth", at_depths))
    pairs = tuple(
        check_coordinates(shapes, over, training, rate, optimizer, num_steps=num_steps, num_seeds=num_seeds)
        for over, shapes in grown
        if shapes
    )
    return MupCheck(rate, pairs)
