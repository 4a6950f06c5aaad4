"""Step times beside public runs, of which `scripts/study_public_steps.py` reads all, and what they must grow with."""

from __future__ import annotations

import pytest

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy, profile_decoder
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.plan.step_time import step_seconds

# llm-foundry, scripts/train/benchmarking/README.md of 2024-04-22: sequences of 2,048 tokens, bf16, all sharded
SHAPES = {
    "125m": ModelShape(12, 768, 12, 12, 2048, 50368, 2048, tied_embeddings=True),
    "1b": ModelShape(24, 2048, 16, 16, 5464, 50368, 2048, tied_embeddings=True),
    "7b": ModelShape(32, 4096, 32, 32, 10928, 50368, 2048, tied_embeddings=True),
    "30b": ModelShape(48, 7168, 56, 56, 19120, 50368, 2048, tied_embeddings=True),
}


def speed(
    name: str, device: str, gpus: int, micro_batch: int, accumulation: int = 1, recomputed: bool = False
) -> float:
    """Tokens a second of each GPU."""
    shape = SHAPES[name]
    cluster = resolve_cluster("bf16", device=device, gpus_per_node=8, num_nodes=gpus // 8)
    strategy = Strategy(3, gpus, micro_batch, recomputed, "none", "bf16", "bf16")
    flops = training_flops_per_token(shape) * shape.context_length
    seconds = step_seconds(profile_decoder(shape, "bf16"), strategy, accumulation, flops, cluster)
    return micro_batch * accumulation * shape.context_length / seconds


@pytest.mark.parametrize(
    ("run", "measured"),
    [
        (("125m", "A100-SXM-80GB", 8, 40, 2), 142_830),
        (("1b", "A100-SXM-80GB", 8, 14, 4), 20_513),
        (("7b", "A100-SXM-80GB", 8, 6, 2), 4_641),
        (("7b", "A100-SXM-40GB", 64, 18, 1, True), 3_665),
        (("1b", "H100-SXM", 8, 14), 45_455),
        (("7b", "H100-SXM", 8, 6), 10_643),
        (("30b", "H100-SXM", 32, 14, 3, True), 2_308),
    ],
)
def test_predictions_are_near_public_runs(run, measured):
    assert speed(*run) == pytest.approx(measured, rel=0.25)


def test_a_faster_device_is_faster_and_reaches_less_of_its_peak():
    slow, fast = (speed("7b", device, 8, 6) for device in ("A100-SXM-80GB", "H100-SXM"))
    assert 1.5 < fast / slow < 989 / 312


def test_the_same_work_in_more_sequences_at_once_is_no_slower():
    assert speed("125m", "H100-SXM", 8, 1) < speed("125m", "H100-SXM", 8, 8) < speed("125m", "H100-SXM", 8, 32)
