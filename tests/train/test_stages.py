"""The loss of a point depends neither on its ZeRO stage nor on the number of processes: real DeepSpeed over gloo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flopsfit_ds.train.data.sampling import samples_of_step
from flopsfit_ds.train.schedule import learning_rate_at
from helpers.sweeps import EVERY_OPTION, plan_of, write_bytes_corpus
from helpers.train.ranks import CURVE, Layout, workload_of

ALONE = Layout(0, 1, accumulation=2)
EIGHT = [Layout(stage, world, accumulation=2) for stage in (0, 1, 2, 3) for world in (1, 2)]
SHORT = {"design__points": [{"num_params": 6e3, "num_tokens": 3840}]}  # 30 steps


def largest_difference(first: list[float], second: list[float]) -> float:
    assert len(first) == len(second)
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


def test_three_fp32_curves_agree(trained):
    assert_curves_agree(trained, [Layout(1, 2, 2), Layout(2, 2, 4), Layout(3, 2, 2)])


def test_the_norm_of_the_gradient_is_recorded_at_every_stage(trained):
    def norms(layout, **changes):
        lines = trained(layout, **changes).folder.metrics.read()
        return [line["gradient_norm"] for line in lines]

    reference = norms(ALONE)
    assert len(reference) == 50
    assert all(norm > 0 for norm in reference)
    for layout in (Layout(1, 2, 2), Layout(2, 2, 4), Layout(3, 2, 2)):
        assert norms(layout) == pytest.approx(reference, rel=0.02), layout
    short = norms(Layout(0, 2, 2), **SHORT)
    assert norms(ALONE, **SHORT) == pytest.approx(short, rel=0.02)
    free = norms(ALONE, **SHORT, training__gradient_clipping=0.0)
    assert free[0] == pytest.approx(short[0], rel=1e-5), "the first step's norm is there without clipping too"


@pytest.mark.slow
@pytest.mark.long
def test_the_eight_fp32_curves_agree(trained):
    assert_curves_agree(trained, EIGHT)


def assert_curves_agree(trained, layouts):
    reference = trained(ALONE)
    assert len(reference.losses) == 50
    assert reference.losses[-1] < reference.losses[0] - 1  # it learns, or agreement would mean little
    for layout in layouts:
        attempt = trained(layout)
        assert largest_difference(attempt.losses, reference.losses) <= 1e-5, layout
        assert abs(attempt.outcome["loss"] - reference.outcome["loss"]) <= 1e-4, layout


def test_bf16_at_stage_3_stays_near_fp32(trained):
    assert_bf16_stays_near(trained, [Layout(3, 2, 2)])


@pytest.mark.slow
@pytest.mark.long
def test_bf16_at_every_stage_stays_near_fp32(trained):
    assert_bf16_stays_near(trained, EIGHT)


def assert_bf16_stays_near(trained, layouts):
    """At a learning rate that does not itself amplify every rounding: three times this one does, in fp32 as well."""
    gentle = {"training__learning_rates": [3e-3], "design__points": [{"num_params": 6e3, "num_tokens": 60 * 128}]}
    reference = trained(ALONE, **gentle)
    assert reference.losses[-1] < reference.losses[0] - 1
    for layout in layouts:
        attempt = trained(layout, **gentle, training__precision="bf16")
        assert largest_difference(attempt.losses, reference.losses) > 1e-5  # it is bf16
        assert largest_difference(attempt.losses, reference.losses) <= 5e-3, layout
        assert abs(attempt.outcome["loss"] - reference.outcome["loss"]) <= 5e-3, layout


def test_the_curve_is_that_of_a_plain_pytorch_loop(trained, tmp_path):
    """Model, order of the data, schedule, AdamW, clipping and held-out loss, written out without DeepSpeed."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    plan = plan_of(CURVE, tmp_path)
    run, recipe = plan.runs[0], plan.runs[0].recipe
    workload = workload_of(plan, run, tmp_path)
    torch.manual_seed(run.seed)
    model = workload.build_model(False)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
    )
    losses = []
    for step in range(run.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, run.num_steps, recipe)
        samples = samples_of_step(step, run.global_batch_sequences, workload.num_training_samples, run.seed)
        loss = workload.loss(model, workload.training_batch(samples))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clipping)
        optimizer.step()
        losses.append(loss.item())
    attempt = trained(ALONE)
    assert largest_difference(attempt.losses, losses) <= 1e-5

    windows = workload.heldout_batch(np.arange(workload.num_heldout_samples))
    with torch.no_grad():
        heldout = workload.sample_losses(model, windows).double()
    outcome = attempt.outcome
    assert outcome["loss"] == pytest.approx(heldout.mean().item(), abs=1e-5)
    assert outcome["loss_standard_error"] == pytest.approx(heldout.std().item() / math.sqrt(len(heldout)), rel=1e-3)
    assert outcome["loss_tokens"] == len(heldout) * 16 == 1023 // 16 * 16


def test_the_heldout_loss_and_its_error_do_not_depend_on_how_it_is_split(trained):
    """63 windows are no multiple of 2 ranks x 2 sequences, nor of 4: the filling must weigh nothing."""
    alone = trained(ALONE).outcome
    for layout in (Layout(1, 2, 2), Layout(2, 2, 4)):
        split = trained(layout).outcome
        assert split["loss_tokens"] == alone["loss_tokens"]
        assert split["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert split["loss_standard_error"] == pytest.approx(alone["loss_standard_error"], rel=1e-3)


def test_gradient_accumulation_gives_the_same_curve(trained):
    reference = trained(ALONE).losses
    for layout in (Layout(0, 1, accumulation=1), Layout(0, 1, accumulation=4), Layout(2, 2, accumulation=4)):
        assert largest_difference(trained(layout).losses, reference) <= 1e-5, layout


@pytest.mark.parametrize(
    "changes",
    [
        {"model__tied_embeddings": False, "model__query_heads_per_kv_head": 2},
        {"training__frozen_parameters": ["blocks.0.*", "norm.weight"]},
    ],
    ids=["untied-grouped-queries", "frozen"],
)
def test_other_models_give_the_same_curve_at_stage_3(trained, changes):
    changes = {**SHORT, **changes}
    reference, sharded = trained(ALONE, **changes), trained(Layout(3, 2, 2), **changes)
    assert largest_difference(sharded.losses, reference.losses) <= 1e-5
    assert sharded.outcome["observed"]["num_params_total"] == reference.outcome["observed"]["num_params_total"]
    assert sharded.outcome["observed"]["num_params_trainable"] == reference.outcome["observed"]["num_params_trainable"]


@pytest.mark.slow
def test_a_decoder_with_all_options_gives_the_same_curve_at_every_stage(trained):
    changes = {**SHORT, **EVERY_OPTION}
    reference = trained(ALONE, **changes)
    assert reference.losses[-1] < reference.losses[0] - 1
    assert largest_difference(reference.losses, trained(ALONE, **SHORT).losses) > 1e-2
    for stage in (0, 1, 2, 3):
        attempt = trained(Layout(stage, 2, 2), **changes)
        assert largest_difference(attempt.losses, reference.losses) <= 1e-5, stage
        assert abs(attempt.outcome["loss"] - reference.outcome["loss"]) <= 1e-5, stage


def test_frozen_parameters_are_not_trained(trained):
    frozen = trained(ALONE, **SHORT, training__frozen_parameters=["blocks.0.*", "norm.weight"])
    observed = frozen.outcome["observed"]
    assert observed["num_params_trainable"] < observed["num_params_total"]
    assert largest_difference(frozen.losses, trained(ALONE, **SHORT).losses) > 1e-2


@pytest.mark.parametrize("layout", [Layout(0, 1, 2, activation_checkpointing=True), Layout(3, 2, 2, "optimizer", True)])
def test_checkpointing_and_offload_do_not_change_the_curve(trained, layout):
    assert largest_difference(trained(layout, **SHORT).losses, trained(ALONE, **SHORT).losses) <= 1e-5


def test_the_record_holds_what_was_observed(trained):
    plan_layouts = [(Layout(0, 1, 2), 0, 1), (Layout(3, 2, 2), 3, 2)]
    for layout, stage, world in plan_layouts:
        outcome = trained(layout).outcome
        observed = outcome["observed"]
        assert (outcome["status"], outcome["reason"], outcome["start_step"]) == ("completed", None, 0)
        assert (observed["zero_stage"], observed["world_size"]) == (stage, world)
        assert observed["num_tokens"] == 6400
        assert observed["tokens_per_second"] == pytest.approx(6400 / observed["seconds"])
        assert observed["skipped_steps"] == 0
        assert observed["peak_memory_bytes"] is None
        assert "peak_memory_bytes" in observed["missing"]
        assert observed["peak_host_memory_bytes"] > 10**8
        assert set(outcome["versions"]) == {
            "python", "torch", "deepspeed", "accelerate", "transformers", "flopsfit_ds"
        }  # fmt: skip


def test_another_seed_is_another_curve(trained):
    assert (
        largest_difference(trained(ALONE, **SHORT).losses, trained(ALONE, **SHORT, training__seeds=[1]).losses) > 1e-2
    )


def test_the_planned_parameters_and_flops_are_those_observed(trained, tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    run = plan_of(CURVE, tmp_path).runs[0]
    for layout in (ALONE, Layout(3, 2, 2)):
        observed = trained(layout).outcome["observed"]
        assert observed["num_params_total"] == run.num_params_total
        assert observed["num_params_trainable"] == run.num_params_trainable
        assert observed["flops"] == run.flops
