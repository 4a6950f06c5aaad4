"""Sweeps as jobs of a real SLURM: two nodes on one machine, started by scripts/slurm_testbed.sh."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.engine.drivers import checkpoints, let_go, wait_until, wait_until_held
from helpers.engine.toy import CHECKPOINT_STEPS, HELD_STEP, steps_trained_twice, undisturbed_loss

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slurm
SPEC = """
name: toy
output_root: {root}
model: {{vocab_size: 256, context_length: 32, head_dim: 8, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 2k}}
design: {{method: points, points: [{{num_params: 11k, num_tokens: 20k}}]}}
training: {{global_batch_tokens: 1024, learning_rates: [6e-3], precision: fp32}}
hardware: {{device: cpu, gpus_per_node: 1, num_nodes: 2}}
placement: {{num_gpus: [2], zero_stages: [2]}}
"""

STOPPABLE = """
import os, signal, sys, time
def say(word): open("words", "a").write(word + " ")
def stop(*_): say("stopped"); sys.exit(75)
signal.signal(signal.SIGTERM, stop)
say("started")
if os.environ.get("SLURM_RESTART_COUNT", "0") != "0": say("went-on"); sys.exit(0)
time.sleep(60)
"""


@pytest.mark.slow
def test_small_points_share_a_job_and_one_goes_on_when_its_submitter_is_killed(cluster):
    process = cluster.start(3, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    process.kill()
    process.wait()
    let_go(cluster.folder)
    records = cluster.finish(3, "[1]", 2, 0.0)
    assert len(cluster.job_ids()) == 1, "three small points, one job, submitted once"
    assert [len(record.attempts) for record in records] == [1, 1, 1], "the job never noticed"


def test_stopping_the_submitter_leaves_the_jobs_to_the_cluster(cluster):
    process = cluster.start(1, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "1 runs to go" in cluster.log
    let_go(cluster.folder)
    (record,) = cluster.finish(1, "[1]", 2, 0.0)
    assert len(record.attempts) == 1


def test_a_point_on_two_nodes(cluster):
    (record,) = cluster.finish(
        1, "[2]", 1, 0.05, "hardware.num_nodes=2", "training.global_batch_tokens=2048", "execution.hang_timeout=60"
    )
    assert record.attempts[0].slots == (f"{record.host}:0", f"{record.host.rpartition('/')[0]}/1:0")
    assert cluster.call("sacct", "-n", "-X", "-P", "-j", cluster.job_ids()[0], "-o", "NodeList").strip() == "n[1-2]"


@pytest.mark.slow
@pytest.mark.long
def test_a_job_cancelled_by_an_administrator_is_submitted_again(cluster, faults):
    faults.inject("a SLURM job cancelled")
    process = cluster.start(1, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    cluster.call("scancel", cluster.job_ids()[0])
    wait_until(lambda: checkpoints(cluster.folder) == [HELD_STEP], cluster.folder)
    let_go(cluster.folder)
    assert process.wait(240) == 0, cluster.log
    (record,) = cluster.sweep.records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["preempted", "completed"]
    (lost,) = [event for event in cluster.sweep.events.read() if event["event"] == "job lost"]
    assert (lost["job_id"], lost["state"]) == (cluster.job_ids()[0], "CANCELLED")
    assert record.attempts[-1].start_step >= 5
    faults.cost("a SLURM job cancelled", steps_trained_twice(cluster.sweep.path), allowed=CHECKPOINT_STEPS)


def test_a_partition_that_does_not_exist(cluster):
    process = cluster.start(1, "[1]", 2, 0.1, "execution.slurm_partition=gpu")
    assert process.wait(120) == 2
    assert "the cluster has no partition 'gpu'; it has high, main" in cluster.log


@pytest.mark.slow
@pytest.mark.long
def test_no_more_jobs_at_once_than_allowed(cluster):
    cluster.finish(2, "[1]", 2, 0.3, "execution.slurm_max_jobs=1", "hardware.peak_flops=5e3")
    assert len(cluster.job_ids()) == 2, "long points have a job each"
    lines = cluster.call("sacct", "-n", "-X", "-P", "-j", ",".join(cluster.job_ids()), "-o", "Start,End").split()
    times = sorted(line.split("|") for line in lines)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_under_plain_srun_on_two_nodes(cluster):
    """One allocation, one rank a node, no launcher but `srun`, which sets no RANK and no MASTER_ADDR."""
    (cluster.folder / "spec.yaml").write_text(SPEC.format(root=cluster.folder / "outputs"))
    command = ["salloc", "-N2", "--ntasks-per-node=1", "srun", "-N2", "--ntasks-per-node=1", sys.executable]
    answer = subprocess.run(
        [*command, str(ROOT / "scripts" / "sweep.py"), "spec.yaml"],
        env=cluster.environment, capture_output=True, text=True, timeout=240, check=False, cwd=cluster.folder,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (record,) = cluster.sweep.records()
    assert record.status == "completed"
    assert (record.observed.world_size, record.observed.zero_stage) == (2, 2)
    first, second = (slot.rpartition(":")[0] for slot in record.attempts[-1].slots)
    assert first != second, "one rank on each node"
    (step,) = cluster.sweep.path.glob("slurm/*.json")
    steps = cluster.call("sacct", "-n", "-P", "-j", step.name.partition(".")[0], "-o", "JobID,NodeList,NTasks")
    assert f"{step.name.partition('.')[0]}.0|n[1-2]|2" in steps.split()


@pytest.mark.slow
@pytest.mark.long
def test_the_readmes_script_is_stopped_before_its_time_limit_and_requeued(cluster):
    """Its lines on a real SLURM, with smaller numbers; the ranks see the signal, and the shell outlives it."""
    (script,) = [block for block in (ROOT / "README.md").read_text().split("```") if "#SBATCH" in block]
    (cluster.folder / "job.sbatch").write_text(script.strip() + "\n")
    (cluster.folder / "scripts").mkdir()
    (cluster.folder / "scripts" / "sweep.py").write_text(STOPPABLE)
    option = next(word for word in script.split() if word.startswith("--signal=")).partition("=")[2]
    smaller = ["--nodes=1", "--time=10", "--ntasks-per-node=1", "--gpus-per-node=0", "--parsable"]
    job = cluster.call("sbatch", *smaller, "job.sbatch").strip()
    cluster.wait_for_words("started")
    to_the_shell = ["--batch"] if option.startswith("B:") else []
    cluster.call("scancel", *to_the_shell, "--signal=TERM", job)
    cluster.wait_for_words("started stopped started went-on")
    cluster.wait_for_state(job, "COMPLETED")


@pytest.mark.slow
@pytest.mark.long
def test_preempted_in_the_middle_requeued_and_completed(cluster, faults):
    faults.inject("preemption by SLURM")
    process = cluster.start(1, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    victim = cluster.job_ids()[0]
    cluster.call("sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_until(lambda: checkpoints(cluster.folder) == [HELD_STEP], cluster.folder)
    let_go(cluster.folder)
    assert process.wait(300) == 0, cluster.log
    (record,) = cluster.sweep.records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["preempted", "completed"]
    assert record.attempts[1].start_step == HELD_STEP, "the checkpoint was written when the signal came"
    assert cluster.job_ids() == [victim], "requeued by the cluster, not submitted again"
    faults.cost("preemption by SLURM", steps_trained_twice(cluster.sweep.path), allowed=0)
