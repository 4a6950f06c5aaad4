"""Which optimisers are planned where, what they hold, and what is refused."""

from __future__ import annotations

import json

import pytest

from flopsfit_ds.base.errors import FlopsfitError, PlanError, SpecError
from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy, estimate_memory
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.plan.family import SizedModel, sized_decoder
from flopsfit_ds.plan.recipe.optimizers import GroupPlan, OptimizerPlan
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.case import LanguageModelCase
from flopsfit_ds.study.steps import build_plan
from helpers.sweeps import MACHINE, MICRO, plan_of, spec_of, with_values, write_bytes_corpus

H100 = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8)
TABLE_HEAVY = ModelShape(4, 512, 8, 8, 1408, 32000, 256)
MUON = OptimizerPlan("muon", (), (("momentum", 0.95), ("scale", "match-rms-adamw")), elementwise=False)
EIGHT_BIT = OptimizerPlan("adamw8bit", elementwise=False)
ADAFACTOR = OptimizerPlan("adafactor", (), (("clip_threshold", 1.0), ("decay_exponent", -0.8)), elementwise=False)
APART = OptimizerPlan("adamw", (GroupPlan("embeddings", 0.5), GroupPlan("head", 2.0)))
GPU = {"hardware": {"device": "H100-SXM", "gpus_per_node": 8}}
OWN = {"name": "factory", "factory": "helpers.own_optimizers:momentum_sgd"}


@pytest.fixture
def folder(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt", 20_000)
    return tmp_path


def planned(folder, **changes):
    return plan_of(with_values(MICRO, **changes), folder)


def test_adamw_by_name_is_the_run_it_always_was(folder):
    plain = planned(folder).runs[0]
    assert planned(folder, training__optimizer={"name": "adamw"}).runs[0].run_id == plain.run_id
    groups = {"embeddings": {"learning_rate_factor": 0.5}}
    others = [
        {"name": "adamw", "groups": groups},
        {"name": "muon"},
        {"name": "muon", "momentum": 0.9},
        {"name": "lion"},
    ]
    ids = {planned(folder, training__optimizer=each).runs[0].run_id for each in others}
    assert len(ids) == len(others)
    assert plain.run_id not in ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training__optimizer": {"name": "adafactor"}, "placement": {"zero_stages": [2, 3]}},
            r"adafactor trains alike at ZeRO-0 only, and placement.zero_stages is \[2, 3\].*rows and columns.*\[0\]",
        ),
        ({"training__optimizer": {"name": "muon"}, "placement": {"zero_stages": [1]}}, "gradient_clipping: 0 allows"),
        ({"training__optimizer": {"name": "adamw8bit"}}, "adamw8bit on a CPU: .*CUDA alone; write name: adamw"),
        ({"training__optimizer": {"name": "lion"}, "placement": {"offload": "always"}}, "write offload: never"),
        ({"training__optimizer": OWN}, "training.optimizer.factory: .*--allow-import helpers"),
        ({"training__optimizer": {"name": "adafactor"}, "training__beta2": 0.9}, "beta2 says nothing to the optimizer"),
        (
            {"training__optimizer": {"name": "moun"}},
            r"training\.optimizer\.name: found 'moun' \(did you mean muon\?\); allowed: adamw",
        ),
        ({"training__optimizer": {"momentum": 0.9}}, r"training\.optimizer: this section needs the key name"),
        (
            {"training__optimizer": {"name": "muon", "nesterov": True}},
            r"training\.optimizer\.nesterov: unknown key; known here: groups, momentum, name, scale",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_at_planning(folder, changes, words):
    with pytest.raises(FlopsfitError, match=words):
        planned(folder, **changes)


GROUPS = {"name": "adamw", "groups": {"head": {"learning_rate_factor": 2}}}
OF_HF = {"family": "hf", "architecture": "llama", "head_dim": 8, "size_multiple_of": 8, "context_length": 16}


@pytest.mark.parametrize(
    ("vocab_size", "training", "again"),
    [
        (16, {"optimizer": GROUPS}, True),
        (32, {"optimizer": GROUPS}, True),  # its feed-forward layers' rows
        (77, {"optimizer": GROUPS}, False),
        (16, {}, False),
        (16, {"optimizer": {"name": "lion"}}, False),  # one rate for all, as ever
        (16, {"optimizer": {"name": "muon"}}, True),
        (16, {"mup": {"base_width": 8}}, False),
    ],
)
def test_only_runs_whose_layers_were_taken_for_heads_are_runs_anew(folder, monkeypatch, vocab_size, training, again):
    """Projections with as many rows as there are ids had the head's rate, under the id of a run that has another."""
    changes = {"model__vocab_size": vocab_size, **{f"training__{key}": value for key, value in training.items()}}
    changes |= {"model__mlp_ratio": 2, "data": None}
    run = planned(folder, **changes).runs[0]
    assert (run.model.hidden_size, run.model.intermediate_size) == (16, 32)
    monkeypatch.setattr(SizedModel, "identity", lambda _model: {})
    assert (planned(folder, **changes).runs[0].run_id != run.run_id) is again


@pytest.mark.parametrize("again", [True, False])
def test_layers_of_other_models_are_told_from_heads_too(folder, again):
    from flopsfit_ds.study.families.of_hf import HfFamily

    model = OF_HF | {"vocab_size": 24 if again else 25}
    spec = spec_of(with_values(MICRO, model=model, training__optimizer=GROUPS))
    sized = HfFamily(spec.model, spec.training, folder).nearest(9_000, ())
    assert json.loads(sized.shape.fields)["hidden_size"] == 24
    assert sized.moved_from_head is again


def test_stages_are_those_that_train_alike(folder):
    large = {
        "model": {"vocab_size": 32000, "context_length": 1024},
        "design": {"method": "points", "points": [{"num_params": 2e9, "num_tokens": 1e8}]},
        "training": {"global_batch_tokens": 2**16},
        **GPU,
    }
    for optimizer, alone in (({"name": "muon"}, True), ({"name": "lion"}, False), ({"name": "adafactor"}, True)):
        training = large["training"] | {"optimizer": optimizer}
        plan = planned(folder, **{**large, "training": training}, data=None)
        stages = {each.strategy.zero_stage for each in plan.runs[0].placement.runners_up}
        assert (stages | {plan.runs[0].placement.strategy.zero_stage} == {0}) is alone, optimizer
        assert any("planned at ZeRO-0, since" in warning for warning in plan.warnings) is alone
    training = large["training"] | {"optimizer": {"name": "muon"}, "gradient_clipping": 0}
    plan = planned(folder, **{**large, "training": training}, data=None)
    assert any(each.strategy.zero_stage > 0 for each in plan.runs[0].placement.runners_up)


@pytest.mark.parametrize(
    ("plan", "bytes_a_parameter"),
    [(None, 8), (OptimizerPlan("lion"), 4), (ADAFACTOR, 0.01), (EIGHT_BIT, 2.03), (APART, 8)],
)
def test_states_are_what_the_optimiser_keeps(plan, bytes_a_parameter):
    profile = sized_decoder(TABLE_HEAVY, (), "bf16", plan).profile
    found = estimate_memory(profile, Strategy(0, 1, 1, False, "none", "bf16"), H100).components.optimizer_states
    assert found / TABLE_HEAVY.parameters.total == pytest.approx(bytes_a_parameter, rel=0.02, abs=0.005)


@pytest.mark.parametrize(
    ("plan", "stage", "gpus"), [(MUON, 2, 8), (MUON, 3, 8), (APART, 2, 8), (EIGHT_BIT, 0, 1), (ADAFACTOR, 0, 1)]
)
def test_closed_forms_stay_near_the_simulation(simulator, plan, stage, gpus):
    total, strategy = TABLE_HEAVY.parameters.total, Strategy(stage, gpus, 1, False, "none", "bf16")
    closed = estimate_memory(sized_decoder(TABLE_HEAVY, (), "bf16", plan).profile, strategy, H100)
    simulated, _ = simulator.estimate(LanguageModelCase(TABLE_HEAVY, (), plan), total, total, strategy, 2, H100)
    assert -0.03 < closed.peak_allocated_bytes / simulated.peak_allocated_bytes - 1 < 0.10
    if stage == 0:
        assert closed.components.optimizer_states == pytest.approx(simulated.components.optimizer_states, rel=1e-3)


@pytest.fixture(scope="module")
def simulator(one_simulation_process):
    with Simulator() as simulator:
        yield simulator


def own(folder, name: str, allowed=("helpers",), **changes):
    optimizer = OWN | {"factory": f"helpers.own_optimizers:{name}"} | changes
    spec = spec_of(with_values(MICRO, training__optimizer=optimizer))
    return build_plan(spec, spec_folder=folder, allow_import=allowed, machine=MACHINE)


def test_a_factory_of_the_users_is_looked_at(folder):
    (run,) = own(folder, "momentum_sgd").runs
    assert run.recipe.optimizer is not None
    assert run.recipe.optimizer.bytes_an_element == (4.0, 4.0)
    assert run.placement.profile.states is not None
    assert run.placement.profile.states.state_bytes == 4 * run.num_params_total
    assert own(folder, "momentum_sgd", arguments={"momentum": 0.5}).runs[0].run_id != run.run_id
    assert own(folder, "momentum_sgd", elementwise=True).runs[0].run_id == run.run_id


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "training.optimizer.factory: helpers.own_optimizers has no function missing"),
        ("no_optimizer", "returned str; it must be a torch.optim.Optimizer"),
        ("one_group", "made 1 groups of 2; it must keep those it is given"),
        ("idle", "does not change a matrix"),
    ],
)
def test_a_factory_that_makes_no_optimiser_is_refused(folder, name, words):
    with pytest.raises((PlanError, SpecError), match=words):
        own(folder, name)


def test_a_factory_needs_the_users_leave(folder):
    with pytest.raises(SpecError, match=r"training\.optimizer\.factory: .*allow it with --allow-import helpers"):
        own(folder, "momentum_sgd", allowed=())
