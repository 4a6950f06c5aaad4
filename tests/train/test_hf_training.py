"""Models of transformers by name, through real engines: one loss, however a point is sharded."""

from __future__ import annotations

import pytest

from flopsfit_ds.train.order import EXIT_OUTCOME_WRITTEN
from helpers.study.hf_models import TOYS, toy_plan
from helpers.sweeps import write_bytes_corpus
from helpers.train.ranks import Attempt, Layout, RankServer, start, workload_of

STEPS = 12


def trained(server: RankServer, folder, name: str, stage: int) -> Attempt:
    folder.mkdir(parents=True)
    write_bytes_corpus(folder / "corpus.txt")
    points = [{"num_params": TOYS[name].num_params, "num_tokens": 128 * STEPS}]
    plan = toy_plan(name, folder, design__points=points)
    run = plan.runs[0]
    attempt = start(server, run, workload_of(plan, run, folder), folder / "run", Layout(stage, 2))
    assert attempt.wait() == [EXIT_OUTCOME_WRITTEN] * 2, attempt.logs()
    return attempt


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_a_model_of_transformers_has_one_loss_at_every_stage(server, tmp_path, name):
    whole = trained(server, tmp_path / "0", name, 0)
    assert len(whole.losses) == STEPS
    assert whole.losses[-1] < whole.losses[0] - 0.05
    for stage in (2, 3):
        sharded = trained(server, tmp_path / str(stage), name, stage)
        assert sharded.losses == pytest.approx(whole.losses, abs=1e-5)
        assert sharded.outcome["loss"] == pytest.approx(whole.outcome["loss"], abs=1e-5)
        assert sharded.outcome["observed"]["zero_stage"] == stage
