"""The worked examples do what their pages say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_family_of_fixed_depth_meets_the_budgets_in_width_only():
    runs = example("fixed_depth_family")["plan"]().runs
    assert {run.model.num_layers for run in runs} == {4}
    assert len({run.model.hidden_size for run in runs}) == 6
    assert all(run.flops == pytest.approx(run.compute_budget_flops, rel=0.005) for run in runs)


def test_a_law_with_a_known_floor_gets_the_planted_exponents_back():
    law = example("own_law")["fit_planted"]().law
    assert law.loss_floor == 1.7
    assert (law.alpha, law.beta) == (pytest.approx(0.34, abs=0.01), pytest.approx(0.28, abs=0.01))


def test_a_file_of_own_ids_is_planned_on_as_it_was_written(tmp_path: Path):
    module = example("own_tokens")
    assert module["write_tokens"](tmp_path / "two.bin", ["ACGT", "TTA"]) == 7
    assert np.fromfile(tmp_path / "two.bin", "<u2").tolist() == [0, 1, 2, 3, 3, 3, 0]
    plan = module["plan"](tmp_path)
    assert plan.corpus.num_tokens == 200_000
    assert {run.unique_tokens for run in plan.runs} == {200_000 - 8192}


def test_the_rate_follows_the_size_by_its_rule():
    rates = example("recipe_rule")["rates"]()
    assert len(rates) == 3
    for num_params, rate in rates.items():
        assert rate == pytest.approx(4e-3 * (num_params / 200_000) ** -0.25)
