"""What crosses between ranks in bf16, and a user's own keys of DeepSpeed's: alike at all stages, within rounding."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.train.ranks import Layout

ALONE = Layout(0, 1, accumulation=2)
BF16 = {"training__precision": "bf16", "training__learning_rates": [3e-3]}
BF16 |= {"design__points": [{"num_params": 6e3, "num_tokens": 60 * 128}]}
NARROW = {**BF16, "placement": {"communication": "bf16"}}
KEYS = {"placement": {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 1024, "round_robin_gradients": True}}}}


def largest_difference(first, second) -> float:
    return float(np.abs(np.asarray(first.losses) - np.asarray(second.losses)).max())


@pytest.mark.parametrize(
    "layout", [Layout(0, 2, 2), pytest.param(Layout(2, 2, 2), marks=pytest.mark.long), Layout(3, 2, 2)], ids=str
)
def test_what_bf16_communication_costs_in_loss(trained, layout):
    """As much as autocast itself; and something, or nothing would have crossed in bf16."""
    reference = trained(ALONE, **BF16)
    assert reference.losses[-1] < reference.losses[0] - 1
    wide, narrow = trained(layout, **BF16), trained(layout, **NARROW)
    assert 0 < largest_difference(wide, narrow) <= 5e-3
    assert largest_difference(narrow, reference) <= 5e-3


def test_a_users_buckets_and_order_train_alike(trained):
    short = {"design__points": [{"num_params": 6e3, "num_tokens": 3840}]}
    assert largest_difference(trained(Layout(2, 2, 2), **short, **KEYS), trained(ALONE, **short)) <= 1e-5
