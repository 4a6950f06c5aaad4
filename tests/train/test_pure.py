"""DeepSpeed's own bf16, `training.precision: bf16-pure`: ZeRO-1 to 3 train alike, from the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flopsfit_ds.base.storage import read_json
from helpers.train.ranks import Layout, bench_of

STEPS = 40
PURE = {"training__precision": "bf16-pure", "training__learning_rates": [3e-3]}
PURE |= {"design__points": [{"num_params": 6e3, "num_tokens": STEPS * 128}]}
FP32 = {**PURE, "training__precision": "fp32"}
OF_AN_ENGINE = "helpers.train.trap_targets:describe_session"


def largest_difference(first, second) -> float:
    return float(np.abs(np.asarray(first.losses) - np.asarray(second.losses)).max())


def test_stages_train_alike_and_near_to_fp32(trained):
    reference, alone = trained(Layout(0, 1, 2), **FP32), trained(Layout(1, 1, 2), **PURE)
    assert reference.losses[-1] < reference.losses[0] - 0.7
    assert 0 < largest_difference(alone, reference) <= 0.02  # as far as bf16 rounds
    several = [trained(Layout(stage, 2, 2), **PURE) for stage in (1, 2, 3)]
    assert all(largest_difference(each, alone) <= 0.01 for each in several)
    assert several[1].losses[0] == several[2].losses[0]  # the same first weights, though ZeRO-3 builds them in parts
    assert largest_difference(several[1], several[2]) <= 1e-3


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_are_in_bf16_and_tables_of_positions_are_not(server, tmp_path, stage):
    bench = bench_of(server, tmp_path, Layout(stage, 1, 2), **PURE)
    attempt = bench.start(1e9, target=OF_AN_ENGINE)
    assert attempt.wait() == [0], attempt.logs()
    found = read_json(bench.folder / "session.0.json")
    assert found["parameter_types"] == [str(torch.bfloat16)]
    assert found["buffer_types"] == [str(torch.float32)]
