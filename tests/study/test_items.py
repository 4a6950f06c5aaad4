"""Datasets whose first item is fine: the others are looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.study.probes.items import check_items
from flopsfit_ds.train.data.dataset import _collate
from helpers.study import losses
from helpers.study.own_model import Language, Waves, study


class Odd:
    """A thousand pairs, all but those with certain numbers alike."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], Any], odd: Callable[[int], bool]) -> None:
        self.change, self.odd = change, odd

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> Any:
        inputs, targets = torch.zeros(8), torch.zeros(1)
        return self.change(inputs, targets) if self.odd(number) else (inputs, targets)


def broken(inputs: torch.Tensor, targets: torch.Tensor) -> Any:
    raise KeyError("no such line")


CASES = [
    (lambda x, y: (torch.zeros(9), y), r"inputs is Tensor float32 \[9\], and that of item 0 .* float32 \[8\]"),
    (lambda x, y: (x, y.double()), r"targets is Tensor float64 \[1\]"),
    (lambda x, y: (x, None), "targets is NoneType"),
    (lambda x, y: (x.numpy(), y), "inputs is ndarray float32"),
    (lambda x, y: ({"a": x}, y), r"has other parts than item 0 of dataset: inputs, inputs\['a'\]"),
    (lambda x, y: None, r"is a NoneType; an item is a pair"),
    (lambda x, y: (x, y, y), r"is a tuple of 3; an item is a pair"),
    (broken, "raises KeyError: 'no such line'"),
]


@pytest.mark.parametrize(("change", "words"), CASES)
@pytest.mark.parametrize(("odd", "number"), [(lambda n: n == 999, "999"), (lambda n: 400 <= n < 600, r"[45]\d\d")])
def test_an_item_unlike_the_first_is_named_before_training(change, words, odd, number):
    dataset = Odd(change, odd)
    with pytest.raises(DataError, match=rf"eval_dataset: item {number}:? .*{words}.*\d+ of 1000 items looked at"):
        check_items("eval_dataset", dataset, dataset[0])


def test_items_that_are_alike_pass_and_it_is_said_how_many_were_looked_at():
    dataset = Waves(1000)
    looked_at = int(check_items("dataset", dataset, dataset[0]).split()[1])
    assert 60 <= looked_at <= 64
    few = Waves(3)
    assert "3 of 3 items" in check_items("dataset", few, few[0])


def test_an_item_that_no_sample_showed_is_named_when_it_is_met():
    for change, _ in CASES[5:]:
        with pytest.raises(DataError, match="dataset: item 7 is no pair or raises"):
            _collate(Odd(change, lambda n: n == 7), [5, 6, 7])
    with pytest.raises(DataError, match="dataset: items 5, 6, 7 do not make one batch"):
        _collate(Odd(CASES[0][0], lambda n: n == 7), [5, 6, 7])


class Drawing:
    """Adds noise from a generator: torch's own, or one that nobody can seed."""

    def __init__(self, draws: np.random.Generator | None) -> None:
        self.draws = draws

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(4) if self.draws is None else torch.from_numpy(self.draws.random(4))
        return number + noise.float(), torch.tensor([float("nan")] if number == 49 else [0.0])


def test_a_dataset_that_nobody_can_seed_is_refused():
    """Each time its items, and with them the study's identity, would be others."""
    with pytest.raises(DataError, match="item 0 is another each time it is looked at"):
        check_items("dataset", Drawing(np.random.default_rng()), Drawing(None)[0])
    assert "; item 49 has infinite values or some that are no numbers" in check_items(
        "dataset", Drawing(None), Drawing(None)[0]
    )


def test_held_out_samples_of_a_dataset_that_draws_are_the_same_whenever_they_are_asked_for():
    def batch(*numbers: int) -> torch.Tensor:
        workload = losses.workload(Language, Drawing(None), losses.of_logits, None, LossTraits(), ())
        return workload.heldout_batch(np.array(numbers))[0]

    torch.manual_seed(0)
    together, alone = batch(0, 1, 2), batch(2)
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(together[0] % 1, together[1] % 1)


def test_what_is_trained_on_is_not_what_is_measured_on():
    waves = Waves()
    with pytest.raises(DataError, match="eval_dataset is dataset: the loss would be measured on what is trained"):
        study(dataset=waves, eval_dataset=waves, train=False)
