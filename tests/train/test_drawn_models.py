"""One loss for every layout, of models whose attention, experts, heads, frozen parts and losses are drawn."""

from __future__ import annotations

import pytest

from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.train.data.dataset import DatasetWorkload, telling_batch
from helpers.study.drawn_models import draw
from helpers.study.foreign_models import CONTEXT
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import Layout, start

STEPS, HELD_OUT = 6, 13
LAYOUTS = [Layout(0, 1, 4), Layout(0, 2, 1), Layout(2, 2, 2), Layout(3, 2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_drawn_models_have_one_loss_in_every_layout(server, tmp_path, seed):
    """Seeds are compared in two layouts each: one process and another micro-batch, or two ranks at some stage."""
    model_class, arguments, dataset, loss_fn = draw(seed)
    write_bytes_corpus(tmp_path / "corpus.txt")
    run = plan_of(with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 128 * STEPS}]), tmp_path).runs[0]
    rest = {name: value for name, value in arguments.items() if name != "width"}
    traits = look_at_loss(model_class, rest, "width", 16, telling_batch(dataset), loss_fn, None).traits
    workload = DatasetWorkload(
        model_class, tuple(arguments.items()), dataset, None, HELD_OUT, loss_fn, None, tokens_per_sample=CONTEXT,
        traits=traits,
    )  # fmt: skip
    losses = []
    for name, layout in (("one", Layout()), ("other", LAYOUTS[seed])):
        attempt = start(server, run, workload, tmp_path / name, layout)
        assert attempt.wait() == [0] * layout.world_size, attempt.logs()
        losses.append([*attempt.losses, attempt.outcome["loss"]])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6), (arguments, LAYOUTS[seed])
