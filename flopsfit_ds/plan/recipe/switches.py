"""What is switched on for a whole sweep: the compiler, and TF32."""

from __future__ import annotations

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.spec import SweepSpec
from flopsfit_ds.spec.sections import ClassModel, DecoderModel
from flopsfit_ds.spec.training import Training


def check_switches(spec: SweepSpec, device_name: str) -> None:
    """See that what is switched on can be.

    Raises:
        PlanError: A class of the user's is to be compiled, or TF32 is asked of bf16 or of a CPU.
    """
    training = spec.training
    if training.tf32 and training.precision != "fp32":
        raise PlanError(
            f"training.tf32: true beside precision: {training.precision}, whose products are not in fp32; "
            "write precision: fp32, or leave tf32 out"
        )
    if training.tf32 and device_name == "cpu":
        raise PlanError("training.tf32: true on a CPU, which has no TF32; leave it out")
    if spec.training.compile == "on" and not isinstance(spec.model, DecoderModel):
        model = spec.model
        told = (
            f"{model.class_path} is a class of your own; compile inside it, and"
            if isinstance(model, ClassModel)
            else "this is a model of transformers;"
        )
        raise PlanError(
            f"training.compile: on compiles the blocks of the built-in decoder, and {told} write training.compile: off"
        )


def arithmetic(training: Training) -> str:
    """What products are made in, which decides a device's peak: the precision, or `tf32`."""
    return "tf32" if training.tf32 else training.precision


def compiles(spec: SweepSpec, device_name: str) -> bool:
    """Whether blocks are compiled on such a device; on a CPU only where it is asked for: it takes a compiler."""
    wanted = spec.training.compile == "on" or (spec.training.compile == "auto" and device_name != "cpu")
    return wanted and isinstance(spec.model, DecoderModel)
