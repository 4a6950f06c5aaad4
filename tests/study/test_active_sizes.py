"""Sizes that mean active parameters: found where they are coarse, refused by the count that was asked for."""

from __future__ import annotations

import pytest

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.study.families.measured import nearest_by_active

MIXTRAL = {16: (22_224, 13_008), 32: (72_096, 35_232), 48: (149_616, 66_672)}
"""Width, all parameters, active ones: the small Mixtral whose sizes of 16 apart planning once refused."""


class Sized:
    def __init__(self, width: int) -> None:
        self.width, (self.num_params, self.num_params_of_design) = width, MIXTRAL[width]


MODELS = [Sized(width) for width in MIXTRAL]


def width_of(asked: float) -> int:
    def by_total(total: float) -> SizedModel:
        return min(MODELS, key=lambda model: abs(model.num_params / total - 1))  # pyright: ignore[reportReturnType]

    found = nearest_by_active(by_total, asked, "Mixtral", lambda model: f"hidden={model.width}", "the sizes")  # pyright: ignore
    return found.width  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("asked", "width"), [(13e3, 16), (27e3, 32), (36e3, 32), (60e3, 48), (130e3, 48)])
def test_sizes_that_lie_far_apart_are_found_by_active_parameters(asked, width):
    assert width_of(asked) == width


def test_a_refusal_speaks_of_the_parameters_that_were_asked_for():
    with pytest.raises(PlanError, match=r"no Mixtral has about 5k active parameters: with hidden=16 it has 13k"):
        width_of(5e3)
