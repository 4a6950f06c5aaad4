"""What is switched on for a whole sweep: the compiler, and TF32."""

from __future__ import annotations

from collections.abc import Sequence

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.presets import Offload
from flopsfit_ds.spec import PlacementRules, SweepSpec
from flopsfit_ds.spec.sections import ClassModel, DecoderModel
from flopsfit_ds.spec.training import Training

NO_PURE_ZERO0 = (
    "there DeepSpeed takes a step of zero gradients at the start, so that Adam's count runs one ahead and weights "
    "decay once more than at the other stages"
)
NOTHING_TO_GAIN = "offloaded steps wait for the host, where compiled blocks gain nothing"


def check_switches(spec: SweepSpec, device_name: str) -> None:
    """See that what is switched on can be.

    Raises:
        PlanError: What contradicts: a class of the user's or offloaded steps to be compiled, TF32 for bf16 or on a CPU,
            communication in bf16 without autocast, DeepSpeed's own bf16 where it is not known to train alike.
    """
    training = spec.training
    _check_pure(spec)
    if training.tf32 and training.precision != "fp32":
        raise PlanError(
            f"training.tf32: true beside precision: {training.precision}, whose products are not in fp32; "
            "write precision: fp32, or leave tf32 out"
        )
    if training.tf32 and device_name == "cpu":
        raise PlanError("training.tf32: true on a CPU, which has no TF32; leave it out")
    if spec.placement.communication == "bf16" and training.precision != "bf16":
        raise PlanError(
            f"placement.communication: bf16 beside precision: {training.precision}; write precision: bf16, or leave "
            "communication out"
        )
    if spec.placement.offload == "always" and spec.training.compile == "on":
        raise PlanError(f"training.compile: on beside placement.offload: always: {NOTHING_TO_GAIN}; write compile: off")
    if spec.training.compile == "on" and isinstance(spec.model, ClassModel):
        raise PlanError(
            "training.compile: on compiles the blocks of the built-in decoder and of models of transformers, and "
            f"{spec.model.class_path} is a class of your own; compile inside it, and write training.compile: off"
        )


def _check_pure(spec: SweepSpec) -> None:
    training = spec.training
    if training.precision != "bf16-pure":
        return
    asked = "training.precision: bf16-pure"
    if set(spec.placement.zero_stages) == {0}:
        raise PlanError(f"{asked} beside placement.zero_stages: [0]: {NO_PURE_ZERO0}; write zero_stages: [1, 2, 3]")
    if not isinstance(spec.model, DecoderModel):
        raise PlanError(
            f"{asked} is for the built-in decoder alone, whose positions and losses are in fp32 at every precision; "
            "write precision: bf16 for another model"
        )
    if training.optimizer is not None and training.optimizer.name != "adamw":
        raise PlanError(
            f"{asked} beside training.optimizer: {training.optimizer.name}: it is known to train alike under AdamW "
            "alone; write name: adamw, or precision: bf16"
        )
    if spec.placement.communication == "bf16":
        raise PlanError(f"{asked} beside placement.communication: bf16: all that crosses is in bf16; leave it out")


def stages_of(training: Training, rules: PlacementRules) -> PlacementRules:
    """Placement rules without the stage at which DeepSpeed's own bf16 trains otherwise."""
    if training.precision != "bf16-pure":
        return rules
    return rules.model_copy(update={"zero_stages": tuple(stage for stage in rules.zero_stages if stage)})


def arithmetic(training: Training) -> str:
    """What products are made in, which decides a device's peak: the precision, or `tf32`."""
    return "tf32" if training.tf32 else training.precision


def compiles(spec: SweepSpec, device_name: str) -> bool:
    """Whether blocks are compiled on such a device; by `auto` the built-in decoder's, and none on a CPU.

    On a CPU it takes a compiler; models of transformers are of many kinds, of which some compile anew at each layer.
    """
    if spec.training.compile == "auto":
        return device_name != "cpu" and isinstance(spec.model, DecoderModel)
    return spec.training.compile == "on" and not isinstance(spec.model, ClassModel)


def switch_warnings(spec: SweepSpec, placed: Sequence[tuple[str, Offload]]) -> list[str]:
    """What to say where a switch and placement do not go together for some runs, or for a stage that a spec lists.

    Args:
        spec: Of the sweep.
        placed: Label of each run, and what it keeps in host memory.
    """
    said = []
    eager = list(dict.fromkeys(label for label, offload in placed if offload != "none"))
    if spec.training.compile == "on" and eager:
        said.append(f"training.compile: on, but not for {', '.join(eager)}: {NOTHING_TO_GAIN}")
    listed = "zero_stages" in spec.placement.model_fields_set and 0 in spec.placement.zero_stages
    if spec.training.precision == "bf16-pure" and listed:
        said.append(f"placement.zero_stages: 0 is left out under training.precision: bf16-pure: {NO_PURE_ZERO0}")
    return said
