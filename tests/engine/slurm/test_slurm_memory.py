"""Host memory that SLURM jobs ask for: as much as DeepSpeed takes when it loads a checkpoint, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flopsfit_ds.base.units import GIB
from flopsfit_ds.engine.slurm.memory import convert_bytes, load_bytes
from flopsfit_ds.engine.slurm.submissions import plan_submissions
from flopsfit_ds.memory import Strategy
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.spec import parse_spec

SCRIPT = Path(__file__).parents[2] / "helpers" / "engine" / "load_target.py"
SPEC = """
name: sizes
model: {vocab_size: 50304, context_length: 2048}
data: {source: python-stdlib, heldout_tokens: 8k}
design: {method: points, points: [{num_params: 1.5B, num_tokens: 30B}, {num_params: 7B, num_tokens: 140B}]}
training: {global_batch_tokens: 512k, learning_rates: [3e-4], precision: bf16}
hardware: {device: H100-SXM, gpus_per_node: 8}
"""


def _strategy(zero_stage, num_gpus):
    return Strategy(zero_stage, num_gpus, 1, activation_checkpointing=False, offload="none", precision="bf16")


def test_a_job_has_host_memory_for_the_checkpoint_that_its_ranks_load():
    plan = build_plan(parse_spec(SPEC))
    jobs = {submission.run_ids[0]: submission for submission in plan_submissions(plan)}
    for run in plan.runs:
        job = jobs[run.run_id]
        states = 12 * run.num_params_total * (job.slots_per_node if run.placement.strategy.zero_stage == 0 else 1)
        assert states < job.nodes * job.memory_bytes < 2 * states + (job.slots_per_node + 1) * 2 * GIB


def test_a_conversion_is_rank_0s_alone_and_takes_the_module_twice():
    num_params = 10**9
    assert convert_bytes(_strategy(2, 1), num_params, num_params) == 20 * num_params
    assert load_bytes(_strategy(2, 8), num_params, num_params) == 4 * num_params, "every rank reads the whole module"
    assert load_bytes(_strategy(3, 8), num_params, num_params) == 12 * num_params / 8
    assert load_bytes(_strategy(0, 8), num_params, num_params) == 12 * num_params


@pytest.mark.slow
@pytest.mark.long
def test_deepspeed_takes_what_is_asked_for(tmp_path):
    """The real engine and the real conversion, by the kernel's own high-water mark."""
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is the system's again, and counts if taken anew
    command = [
        sys.executable,
        str(SCRIPT),
        "2",
        str(tmp_path / "saved"),
    ]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    measured = json.loads(answer.stdout.splitlines()[-1])
    num_params = measured["num_params"]
    strategy = _strategy(2, 1)
    asked = load_bytes(strategy, num_params, num_params)
    assert 0.9 * asked < measured["load"] < 1.1 * asked
    asked = convert_bytes(strategy, num_params, num_params)
    assert 0.7 * asked < measured["convert"] < 1.1 * asked
