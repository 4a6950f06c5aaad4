"""Studies of models that others wrote: what is planned of experts, and that scalars train."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from flopsfit_ds import find_optimal
from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import ClassShape
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.simulate.profile import profile_class
from flopsfit_ds.study.families import of_class
from flopsfit_ds.train.session import give_scalars_a_dimension
from helpers.study.foreign_models import CONTEXT, FOREIGN, PAIRS, Clip, Mixtral


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """Each size of a class is looked at once for all plans of it here, which have the same samples and losses."""
    known: dict[object, object] = {}

    def profile(model_class, arguments, *, looks_at_pairs=False, **options):
        key = (model_class, tuple(sorted(arguments.items())), looks_at_pairs, options["frozen_parameters"])
        if key not in known:
            known[key] = profile_class(model_class, arguments, looks_at_pairs=looks_at_pairs, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_class, "profile_class", profile)
        yield


def foreign_plan(
    name: str,
    model_class: type[torch.nn.Module] | None = None,
    span: float = 3,
    budget: float = 1e12,
    hardware: dict[str, object] | None = None,
    **changes: object,
) -> SweepPlan:
    """Of a language model that someone else wrote, on windows of constant tokens."""
    foreign = FOREIGN[name]
    tokens = foreign.batch[0][0]
    result = find_optimal(
        model_class or foreign.model_class, size_parameter="width", size_multiple_of=16,
        dataset=[(tokens, tokens)] * 200, loss_fn=foreign.loss, compute_budgets=[budget],
        global_batch_samples=8,
        design={"sizes_per_budget": 2, "size_span": span},
        training={"precision": "fp32"}, hardware=hardware or {"device": "cpu", "gpus_per_node": 2}, train=False,
        **changes,
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


COUNTS = [(None, "active"), ("active", "active"), ("total", "total"), ("matrices", "matrices")]


@pytest.mark.parametrize(("counted", "name"), [*COUNTS, ("non-embedding", "non_embedding")])
def test_a_designs_sizes_and_tokens_mean_active_parameters_unless_told_otherwise(counted, name) -> None:
    """Two sizes at equal distances of the expected optimum, which trains 20 tokens a parameter."""
    fit = {} if counted is None else {"fit": {"parameters": counted}}
    smaller, larger = foreign_plan("Mixtral", span=1.5, budget=3e15, **fit).runs
    tokens = math.sqrt(smaller.num_tokens * larger.num_tokens)
    ratios = {
        kind: tokens / math.sqrt(getattr(smaller, f"num_params_{kind}") * getattr(larger, f"num_params_{kind}"))
        for kind in ("active", "total", "matrices", "non_embedding")
    }
    assert ratios["total"] < ratios["active"] / 1.3
    assert ratios[name] == pytest.approx(20, rel=0.12), ratios


class Declared(Mixtral):
    """Says by hand what of it a token makes use of."""

    @property
    def num_active_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters()) // 2


class Impossible(Mixtral):
    num_active_parameters = 0


def test_a_class_can_say_by_hand_how_many_of_its_parameters_are_active() -> None:
    for run in foreign_plan("Mixtral", Declared, budget=1e14).runs:
        assert run.num_params_active == run.num_params_total // 2
    with pytest.raises(PlanError, match="num_active_parameters is 0: it must be an integer from 1 to the"):
        foreign_plan("Mixtral", Impossible, budget=1e14)


def test_experts_that_a_batch_may_pass_by_are_planned_where_ranks_need_not_agree() -> None:
    found = foreign_plan("looped experts", placement={"num_gpus": [2]})
    assert {run.placement.strategy.zero_stage for run in found.runs} == {0}
    assert any("may pass parameters by" in warning for warning in found.warnings)
    alone = foreign_plan("looped experts", placement={"zero_stages": [2]})
    assert {run.placement.strategy.num_gpus for run in alone.runs} == {1}
    with pytest.raises(PlanError, match="allow zero_stages"):
        foreign_plan("looped experts", placement={"zero_stages": [2], "num_gpus": [2]})


def test_experts_in_blocks_of_their_own_are_planned_at_zero_3_too() -> None:
    found = foreign_plan("expert blocks", placement={"zero_stages": [1, 2, 3], "num_gpus": [2]})
    assert {run.placement.strategy.zero_stage for run in found.runs} == {3}
    assert {run.placement.profile.leaf_modules for run in found.runs} == {("blocks.0", "blocks.1")}
    assert any("ZeRO-3, which gathers blocks.0, blocks.1 whole" in warning for warning in found.warnings)
    with pytest.raises(PlanError, match=r"allow zero_stages: \[0, 3\]"):
        foreign_plan("expert blocks", placement={"zero_stages": [2], "num_gpus": [2]})


@pytest.mark.slow
@pytest.mark.usefixtures("one_simulation_process")
def test_a_class_that_nearly_fills_a_gpu_is_simulated_before_it_is_trained() -> None:
    def planned(**hardware: object) -> SweepPlan:
        one = {"device": "H100-SXM", "gpus_per_node": 1} | hardware
        return foreign_plan("Llama", hardware=one, placement={"memory_margin": 0.001})

    roomy = planned()
    assert {run.placement.memory.method for run in roomy.runs} == {"closed-form"}
    largest = max(run.placement.memory.device_total_bytes for run in roomy.runs)
    tight = planned(device_memory=int(1.01 * largest))
    assert {run.placement.memory.method for run in tight.runs} == {"simulation"}
    assert [run.run_id for run in tight.runs] == [run.run_id for run in roomy.runs]


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
