"""Whether a sweep's models are compiled."""

from __future__ import annotations

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.spec import SweepSpec
from flopsfit_ds.spec.sections import DecoderModel


def check_compile(spec: SweepSpec) -> None:
    """See that what is to be compiled can be.

    Raises:
        PlanError: It is a class of the user's.
    """
    if spec.training.compile == "on" and not isinstance(spec.model, DecoderModel):
        raise PlanError(
            f"training.compile: on compiles the blocks of the built-in decoder, and {spec.model.class_path} is a class "
            "of your own; compile inside it, and write training.compile: off"
        )


def compiles(spec: SweepSpec, device_name: str) -> bool:
    """Whether blocks are compiled on such a device; on a CPU only where it is asked for: it takes a compiler."""
    wanted = spec.training.compile == "on" or (spec.training.compile == "auto" and device_name != "cpu")
    return wanted and isinstance(spec.model, DecoderModel)
