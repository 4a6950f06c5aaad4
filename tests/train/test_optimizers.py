"""Optimisers beside AdamW: alike at every stage they are planned at, and what they say they are."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from torch import nn

from flopsfit_ds.plan.recipe.optimizers import GroupPlan, OptimizerPlan
from flopsfit_ds.plan.recipe.recipe import Recipe
from flopsfit_ds.train.data.sampling import samples_of_step
from flopsfit_ds.train.optimizers.build import build_optimizer, rate_factors
from flopsfit_ds.train.optimizers.kinds import known_parameters
from flopsfit_ds.train.schedule import learning_rate_at
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import Layout, assert_same, bench_of, workload_of

ALONE = Layout(0, 1, accumulation=2)
THIRTY = {"design__points": [{"num_params": 6e3, "num_tokens": 3840}]}
MUON = {"training__optimizer": {"name": "muon"}, "training__gradient_clipping": 0, **THIRTY}
LION = {"training__optimizer": {"name": "lion"}, "training__learning_rates": [2e-3], **THIRTY}
ADAFACTOR = {"training__optimizer": {"name": "adafactor"}, "training__learning_rates": [0.1], **THIRTY}
MUP = {"training__mup": {"base_width": 32, "base_depth": 1}, "training__learning_rates": [3e-3], **THIRTY}
MUON_PLAN = OptimizerPlan("muon", (), (("momentum", 0.95), ("scale", "match-rms-adamw")), elementwise=False)


def largest_difference(first, second) -> float:
    assert len(first) == len(second)
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


@pytest.mark.parametrize(
    ("changes", "layouts"),
    [
        (MUON, [Layout(2, 2, 2), Layout(3, 2, 2)]),
        (LION, [Layout(3, 2, 2)]),
        (ADAFACTOR, [Layout(0, 2, 2)]),
        (MUP, [Layout(2, 2, 2), Layout(3, 2, 2)]),
    ],
    ids=["muon", "lion", "adafactor", "mup"],
)
def test_losses_are_those_of_one_rank_at_every_stage_that_is_planned(trained, changes, layouts):
    reference = trained(ALONE, **changes)
    assert reference.losses[-1] < reference.losses[0] - 0.5
    adamw = trained(ALONE, **THIRTY)
    assert largest_difference(reference.losses, adamw.losses) > 0.01
    for layout in layouts:
        assert largest_difference(trained(layout, **changes).losses, reference.losses) <= 1e-5, layout


def test_clipped_muon_is_planned_at_stage_0_since_deepspeed_clips_its_updates_elsewhere(trained):
    """Where this fails, the library has changed and the refusal can go; unclipped, the two differ by 1e-5 at most."""
    clipped = {**MUON, "training__gradient_clipping": 0.1}
    assert largest_difference(trained(ALONE, **clipped).losses, trained(Layout(2, 2, 2), **clipped).losses) > 1e-3


def test_a_stopped_run_of_muon_goes_on_as_if_nothing_had_been(server, tmp_path):
    changes = {key: value for key, value in MUON.items() if not key.startswith("design")}
    bench = bench_of(server, tmp_path, Layout(2, 2, 2), **changes)
    undisturbed = bench.finish()
    folder = tmp_path / "again"
    folder.mkdir()
    again = bench_of(server, folder, Layout(2, 2, 2), **changes)
    again.stop_at(10, signal.SIGTERM)
    resumed = again.finish()
    assert resumed.outcome["start_step"] >= 10
    assert_same(resumed, undisturbed)


def test_another_layout_starts_over_and_says_why(server, tmp_path):
    changes = {key: value for key, value in LION.items() if not key.startswith("design")}
    bench = bench_of(server, tmp_path, Layout(2, 2, 2), **changes)
    bench.stop_at(10, signal.SIGTERM)
    bench.layout = ALONE
    outcome = bench.finish().outcome
    assert outcome["start_step"] == 0
    assert "only AdamW's states are converted" in outcome["restarted"]


def test_muon_is_torchs_beside_adamw(trained, tmp_path):
    """PyTorch's own orthogonalises in bf16, so that curves are near and not equal."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    plan = plan_of(with_values(MICRO, **MUON), tmp_path)
    run, recipe = plan.runs[0], plan.runs[0].recipe
    workload = workload_of(plan, run, tmp_path)
    torch.manual_seed(run.seed)
    model = workload.build_model(False)
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    table = [p for name, p in model.named_parameters() if "embedding" in name]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(hidden, weight_decay=recipe.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": table, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
    )
    losses = []
    for step in range(run.num_steps):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = learning_rate_at(step, run.num_steps, recipe)
        samples = samples_of_step(step, run.global_batch_sequences, workload.num_training_samples, run.seed)
        loss = workload.loss(model, workload.training_batch(samples))
        model.zero_grad()
        loss.backward()
        muon.step()
        adamw.step()
        losses.append(loss.item())
    assert largest_difference(losses, trained(ALONE, **MUON).losses) < 5e-3


class Kinds(nn.Module):
    """A parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(12, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, 4))
        self.gate = nn.Linear(4, 3, bias=False)
        self.feed = nn.ModuleDict({"gate": nn.Linear(4, 8, bias=False)})
        self.experts = nn.Parameter(torch.randn(3, 4, 8))
        self.kernel = nn.Conv1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 12)


def recipe(plan: OptimizerPlan | None) -> Recipe:
    return Recipe(
        0.1, 0, 1.0, weight_decay=0.5, beta1=0.9, beta2=0.99, epsilon=1e-8, gradient_clipping=0, precision="fp32",
        frozen_parameters=(), optimizer=plan,
    )  # fmt: skip


def test_kinds_are_told_by_layers_and_patterns_decide_before():
    plan = OptimizerPlan("muon", (GroupPlan("router", parameters=("feed.*",)),), MUON_PLAN.options)
    found = {known.name: known for known in known_parameters(Kinds(), plan)}
    assert {name: known.kind for name, known in found.items()} == {
        "tokens.weight": "embeddings", "pos_embed": "embeddings", "gate.weight": "router", "feed.gate.weight": "router",
        "experts": "matrices", "kernel.weight": "matrices", "kernel.bias": "norms", "norm.weight": "norms",
        "norm.bias": "norms", "head.weight": "head", "head.bias": "norms",
    }  # fmt: skip
    assert [name for name, known in found.items() if known.group.orthogonal] == ["experts"]
    plain = {known.name: known for known in known_parameters(Kinds(), MUON_PLAN)}
    assert plain["feed.gate.weight"].group.orthogonal  # as wide as what it gates: no router


def test_experts_in_one_tensor_are_orthogonalised_each():
    """As so many matrices: Muon over all of them at once would give another step."""
    model, single = Kinds(), [nn.Module() for _ in range(3)]
    for number, module in enumerate(single):
        module.weight = nn.Parameter(model.experts.detach()[number].clone())
    torch.manual_seed(1)
    gradient = torch.randn(3, 4, 8)
    model.experts.grad = gradient.clone()
    build_optimizer(model, recipe(MUON_PLAN)).step()
    for number, module in enumerate(single):
        module.weight.grad = gradient[number].clone()
        build_optimizer(module, recipe(MUON_PLAN)).step()
        assert torch.allclose(module.weight, model.experts[number], atol=1e-6)
        step = (model.experts[number] - 0.95 * model.experts[number]).detach()
        assert step.norm() > 0


def test_groups_have_their_own_rates_and_decay():
    groups = (GroupPlan("embeddings", 0.5), GroupPlan("norms", 1.0, weight_decay=0.25), GroupPlan("head", 2.0))
    model = Kinds()
    optimizer = build_optimizer(model, recipe(OptimizerPlan("lion", groups)))
    told = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert told[id(model.tokens.weight)] == (0.05, 0.5)
    assert told[id(model.head.weight)] == (0.2, 0.5)
    assert told[id(model.norm.weight)] == (0.1, 0.25)
    assert told[id(model.experts)] == (0.1, 0.5)
    assert sorted(rate_factors(optimizer)) == [0.5, 1.0, 1.0, 2.0]


def test_lion_steps_by_the_sign_of_its_momentum():
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = build_optimizer(module, recipe(OptimizerPlan("lion")))
    momentum, weight = torch.zeros(1, 2), torch.tensor([[1.0, -2.0]])
    for gradient in (torch.tensor([[0.3, -1.0]]), torch.tensor([[-0.1, 5.0]]), torch.tensor([[-9.0, 0.0]])):
        module.weight.grad = gradient
        optimizer.step()
        weight = weight - 0.1 * (torch.sign(0.9 * momentum + 0.1 * gradient) + 0.5 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(module.weight, weight)
