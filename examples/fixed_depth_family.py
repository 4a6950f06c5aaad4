"""A model family of its own: decoders that grow in width only, always with the same number of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.plan.family import SizedModel, sized_decoder
from flopsfit_ds.plan.sweep_plan import SweepPlan, build_plan
from flopsfit_ds.spec import validate_spec

SPEC = {
    "name": "fixed-depth",
    "data": {"heldout_tokens": 8192},
    "model": {"context_length": 128},
    "design": {"compute_budgets": [1e13, 3e13], "sizes_per_budget": 3},
    "training": {"global_batch_tokens": 1024, "precision": "fp32"},
    "hardware": {"device": "H100-SXM", "gpus_per_node": 1},
}


class FixedDepthFamily:
    """Decoders of `num_layers` blocks; only the width grows."""

    def __init__(self, num_layers: int) -> None:
        self.warnings: list[str] = []
        self._narrowest = ModelShape(
            num_layers=num_layers,
            hidden_size=16,
            num_heads=1,
            num_kv_heads=1,
            intermediate_size=48,
            vocab_size=256,
            context_length=128,
        )

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The width whose number of parameters is nearest and not taken."""
        shapes = (
            dataclasses.replace(
                self._narrowest,
                hidden_size=16 * heads,
                num_heads=heads,
                num_kv_heads=heads,
                intermediate_size=48 * heads,
            )
            for heads in range(1, 65)
        )
        free = [shape for shape in shapes if shape.parameters.total not in taken]
        best = min(free, key=lambda shape: abs(shape.parameters.total / num_params - 1))
        if not 0.5 <= best.parameters.total / num_params <= 2:
            raise PlanError(f"no width has about {num_params:.3g} parameters; the nearest has {best.parameters.total}")
        return sized_decoder(best, frozen=(), precision="fp32")


def plan() -> SweepPlan:
    """The plan of a small study of the family."""
    return build_plan(validate_spec(SPEC, "example"), family=FixedDepthFamily(num_layers=4))


if __name__ == "__main__":
    for run in plan().runs:
        print(run.label, run.model.num_layers, run.model.hidden_size, run.num_params_total)
