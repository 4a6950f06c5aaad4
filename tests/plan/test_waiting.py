"""Sweeps that would wait for one run: more GPUs for it, where its batch divides over more; else what to write."""

from __future__ import annotations

import re

import pytest

from flopsfit_ds.base.errors import PlanError
from helpers.sweeps import plan_of, with_values

LADDER = {
    "name": "ladder",
    "model": {"vocab_size": 128256, "context_length": 8192, "query_heads_per_kv_head": 8, "head_dim": 128},
    "data": {"source": "tokens", "path": "none.bin", "num_tokens": "15T", "heldout_tokens": 1_000_000},
    "design": {"method": "ladder", "num_params": ["1B", "3B", "8B", "20B", "70B"], "tokens_per_parameter": [20]},
    "training": {"global_batch_tokens": 2**22, "precision": "bf16"},
    "hardware": {"device": "H100-SXM", "gpus_per_node": 8, "num_nodes": 64, "host_memory": "2TiB"},
}


def test_runs_of_many_lengths_fill_a_cluster():
    """Batches by rule, of 28 to 320 sequences, on four nodes: of thresholds alone none gives a short schedule."""
    plan = plan_of(
        with_values(
            LADDER,
            model__context_length=4096,
            model__width_per_layer=96,
            model__query_heads_per_kv_head=4,
            design__num_params=["400M", "1B", "3B", "8B"],
            design__tokens_per_parameter=[5, 10, 20],
            training={"global_batch": {"rule": "steplaw"}, "learning_rate": {"rule": "steplaw"}, "precision": "bf16"},
            hardware__num_nodes=4,
        )
    )
    makespan = plan.makespan()
    assert makespan.seconds <= 1.12 * makespan.lower_bound_seconds
    hours = sum(run.placement.predicted_gpu_hours for run in plan.runs)
    assert hours / 32 >= 0.85 * makespan.seconds / 3600


@pytest.mark.parametrize("tokens", [4_000_000, 2**22])
def test_a_batch_that_few_powers_of_two_divide_still_gets_the_cluster(tokens):
    """4M tokens are 488 sequences of 8,192, eight times 61: on eight GPUs the largest run would take eleven years."""
    plan = plan_of(with_values(LADDER, training__global_batch_tokens=tokens))
    makespan = plan.makespan()
    assert makespan.seconds < 1.12 * makespan.lower_bound_seconds
    largest = plan.runs[-1]
    assert largest.placement.strategy.num_gpus == largest.global_batch_sequences
    assert not any("divide over no more" in warning for warning in plan.warnings)


def test_a_run_that_got_more_gpus_is_compared_with_the_nearest_layouts_there_too():
    """Not only with the narrow one that it would have without the others."""
    reasons = {run.placement.strategy.num_gpus: run.placement.reason for run in plan_of(LADDER).runs}
    lower = r"; ZeRO-0: \d+% of the speed a GPU, 4 GPUs: .*, 16 GPUs: "
    assert re.search(rf"would wait; here .* GPU-hours{lower}", reasons[8])
    nearest = r"; ZeRO-2: would need [\d.]+ of 79.1 GiB a GPU, without checkpointing: would need .*, 256 GPUs: \d+%"
    assert re.search(rf"would wait; here .* GPU-hours{nearest} of the speed a GPU$", reasons[512])


def test_a_batch_that_divides_over_few_gpus_is_told_with_one_that_divides_over_more():
    """509 sequences are a prime number of them."""
    prime = with_values(LADDER, training__global_batch_tokens=509 * 8192)
    with pytest.raises(PlanError, match=r"509 sequences a step divide over no more than 1 GPUs, a global batch of 512"):
        plan_of(prime)
    plan = plan_of(with_values(prime, design__num_params=["1B", "3B"]))
    (said,) = [warning for warning in plan.warnings if "divide over no more" in warning]
    assert said.startswith(plan.runs[-1].label)
    assert "509 sequences a step divide over no more than 1 of 512 GPUs" in said
    assert "a global batch of 512 sequences" in said
    again = plan_of(with_values(prime, design__num_params=["1B", "3B"], training__global_batch_tokens=512 * 8192))
    assert again.makespan().seconds < plan.makespan().seconds / 10


@pytest.mark.parametrize(("tokens", "years"), [(20, False), (400, True)])
def test_a_sweep_of_more_than_a_year_says_so(tokens, years):
    plan = plan_of(with_values(LADDER, design__tokens_per_parameter=[tokens]))
    assert (plan.makespan().seconds > 365.25 * 86400) is years
    assert any("years on these devices" in warning for warning in plan.warnings) is years


def test_a_run_that_takes_years_alone_is_named():
    plan = plan_of(
        with_values(LADDER, design__num_params=["1B", "8B"], hardware={"device": "H100-SXM", "num_nodes": 1})
    )
    few = plan_of(
        with_values(
            LADDER, design__num_params=["1B", "8B"], design__tokens_per_parameter=[500],
            hardware={"device": "H100-SXM", "gpus_per_node": 8, "host_memory": "2TiB"},
        )
    )  # fmt: skip
    assert not any("years" in warning for warning in plan.warnings)
    (said,) = [warning for warning in few.warnings if "years on these devices" in warning]
    longest = max(few.runs, key=lambda run: run.paid_seconds)
    years = few.makespan().seconds / (365.25 * 86400)
    assert f"takes {years:,.1f} years" in said
    assert f"1 of 2 runs longer than one by themselves (the longest, {longest.label}: " in said
