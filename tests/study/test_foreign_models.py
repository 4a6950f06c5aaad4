"""Studies of models that others wrote: what is planned of experts, and that scalars train."""

from __future__ import annotations

import pytest
import torch

from flopsfit_ds import find_optimal
from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import ClassShape
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.train.session import give_scalars_a_dimension
from helpers.study.foreign_models import CONTEXT, FOREIGN, PAIRS, Clip


def foreign_plan(name: str, **changes: object) -> SweepPlan:
    """Of a language model that someone else wrote, on windows of constant tokens."""
    foreign = FOREIGN[name]
    tokens = foreign.batch[0][0]
    result = find_optimal(
        foreign.model_class, size_parameter="width", size_multiple_of=16, dataset=[(tokens, tokens)] * 200,
        loss_fn=foreign.loss, compute_budgets=[1e12], global_batch_samples=8,
        design={"sizes_per_budget": 2, "size_span": 3},
        training={"precision": "fp32"}, hardware={"device": "cpu", "gpus_per_node": 2}, train=False, **changes,
    )  # fmt: skip
    assert isinstance(result, SweepPlan)
    return result


def test_the_law_of_experts_counts_active_parameters_unless_told_otherwise() -> None:
    foreign, found = FOREIGN["Mixtral"], foreign_plan("Mixtral")
    for run in found.runs:
        assert isinstance(run.model, ClassShape)
        width = dict(run.model.arguments)["width"]
        assert isinstance(width, int)
        assert run.num_params_active == run.num_params_total - foreign.idle(width)
        assert run.flops == pytest.approx(3 * foreign.forward(width) * run.num_tokens / CONTEXT, rel=0.01)
    assert found.spec.fit.parameters == "active"
    assert any("counts active parameters" in warning for warning in found.warnings)
    assert foreign_plan("Mixtral", fit={"parameters": "total"}).spec.fit.parameters == "total"
    assert foreign_plan("Llama").spec.fit.parameters == "total"


def test_experts_that_a_batch_may_pass_by_are_planned_where_ranks_need_not_agree() -> None:
    found = foreign_plan("looped experts", placement={"num_gpus": [2]})
    assert {run.placement.strategy.zero_stage for run in found.runs} == {0}
    assert any("may pass parameters by" in warning for warning in found.warnings)
    alone = foreign_plan("looped experts", placement={"zero_stages": [2]})
    assert {run.placement.strategy.num_gpus for run in alone.runs} == {1}
    with pytest.raises(PlanError, match="allow zero_stages"):
        foreign_plan("looped experts", placement={"zero_stages": [2], "num_gpus": [2]})


def test_a_parameter_without_a_dimension_is_a_vector_that_reads_as_it_was() -> None:
    plain = Clip(8)
    model = Clip(8)
    model.load_state_dict(plain.state_dict())
    give_scalars_a_dimension(model)
    assert all(parameter.ndim for parameter in model.parameters())
    assert model.scale.shape == plain.scale.shape
    plain(**PAIRS[0]).sum().backward()
    model(**PAIRS[0]).sum().backward()
    gradient = dict(model.named_parameters())["scale"].grad
    assert gradient is not None
    assert torch.equal(gradient, plain.scale.grad.reshape(1))
