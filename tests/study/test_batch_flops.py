"""Models whose samples take other FLOPs in another batch: counted in the batch that is trained, or said by how much."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flopsfit_ds import find_optimal
from flopsfit_ds.model.architecture import ClassShape
from flopsfit_ds.plan.sweep_plan import SweepPlan
from helpers.study.foreign_models import Clip

IDS, TOKENS, BATCH = 64, 16, 8
DRAWN = torch.randint(0, IDS, (200, TOKENS), generator=torch.Generator().manual_seed(0))


class OnDistinct(nn.Module):
    """The work is done once for each id that a batch holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(IDS, width), nn.Linear(width, IDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        distinct, where = torch.unique(tokens, return_inverse=True)
        return self.head(self.table(distinct))[where]


class OnAll(OnDistinct):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


class OnSome(OnDistinct):
    """A layer more for the ids above the middle, of which the first sample has none."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.more = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.table(tokens)
        chosen = (tokens >= IDS // 2).flatten().nonzero().squeeze(-1)
        rows = hidden.flatten(0, 1)
        return self.head(rows.index_add(0, chosen, self.more(rows[chosen]))).view(*tokens.shape, IDS)


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def planned(model_class: type[nn.Module], tokens: torch.Tensor, width: int = 16) -> SweepPlan:
    result = find_optimal(
        model_class, size_parameter="width", size_multiple_of=width, dataset=[(row, row) for row in tokens],
        loss_fn=token_loss, compute_budgets=[2e8], global_batch_samples=BATCH, design={"sizes_per_budget": 1},
        training={"precision": "fp32"}, hardware={"device": "cpu", "gpus_per_node": 1}, train=False,
    )  # fmt: skip
    assert isinstance(result, SweepPlan)
    return result


def said_by(plan: SweepPlan) -> float | None:
    """By how much a batch of the data is said to be off."""
    lines = [warning for warning in plan.warnings if "depend on its batch" in warning]
    if not lines:
        return None
    found = re.search(rf"in a batch of {BATCH} samples .* \(([+-][\d.]+)%\)", lines[0])
    assert found is not None, lines
    return float(found[1]) / 100


def test_work_on_distinct_ids_is_told_by_how_many_there_are() -> None:
    alike = DRAWN.clone()
    alike[0] %= 12
    first = alike[0].unique().numel() / 2  # products of a sample, as planning saw it twice
    plan = planned(OnDistinct, alike)
    (run,) = plan.runs
    spaced = [number * 199 // (BATCH - 1) for number in range(BATCH)]
    truth = alike[spaced].unique().numel() / BATCH
    assert isinstance(run.model, ClassShape)
    width = int(dict(run.model.arguments)["width"])  # pyright: ignore[reportArgumentType]
    assert run.flops / (run.num_steps * BATCH) == pytest.approx(6 * width * IDS * first)
    assert said_by(plan) == pytest.approx(truth / first - 1, abs=1e-3)
    assert run.num_params_active == run.num_params_total  # no expert, though work depends on the tokens
    assert not any("experts" in warning for warning in plan.warnings)


def test_work_on_chosen_ids_is_told_by_how_many_the_data_has() -> None:
    low = DRAWN.clone()
    low[0] %= IDS // 2
    assert said_by(planned(OnSome, low)) == pytest.approx(0.13, abs=0.04)
    assert said_by(planned(OnAll, low)) is None


def clip_plan(batch: int, largest: int, budgets: list[float]) -> SweepPlan:
    views = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    pairs: list[tuple[dict[str, torch.Tensor], int]] = [({"image": row, "text": row[:48]}, 0) for row in views]

    def rows(logits: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")

    plan = find_optimal(
        Clip, size_parameter="width", size_multiple_of=8, dataset=pairs, sample_loss_fn=rows,
        loss_fn=lambda logits, targets: rows(logits, targets).mean(), compute_budgets=budgets,
        global_batch_samples=batch, design={"sizes_per_budget": 2, "size_span": 3}, training={"precision": "fp32"},
        hardware={"device": "cpu", "gpus_per_node": 1}, placement={"max_micro_batch_size_per_gpu": largest},
        train=False,
    )  # fmt: skip
    assert isinstance(plan, SweepPlan)
    return plan


@pytest.mark.parametrize(("batch", "largest", "budget"), [(8, 64, 4e8), (256, 256, 6e9)])
def test_products_of_pairs_are_counted_in_the_micro_batch_that_is_trained(
    batch: int, largest: int, budget: float
) -> None:
    """One sample twice in a batch was 14% too few for micro-batches of 8, and half for 256."""
    plan = clip_plan(batch, largest, [budget])
    assert len(plan.runs) == 2
    for run in plan.runs:
        assert isinstance(run.model, ClassShape)
        width = int(dict(run.model.arguments)["width"])  # pyright: ignore[reportArgumentType]
        at_once = run.placement.strategy.micro_batch_size_per_gpu
        assert at_once == batch
        towers = 6 * (64 + 48 + 2 * 32) * width - 2 * (64 + 48) * width  # no gradient of the inputs
        pairs = 3 * 2 * 32 * at_once
        assert run.flops / run.num_tokens == pytest.approx(towers + pairs, rel=0.002)
        assert run.flops == pytest.approx(budget, rel=0.005)
    (said,) = [warning for warning in plan.warnings if "depend on its batch" in warning]
    assert f"counted in the micro-batches of {batch} " in said
