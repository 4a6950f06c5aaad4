"""What a class does with the samples of a batch while it trains: mixed or remembered, they make layouts differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.train.data.dataset import telling_batch
from helpers.study.own_model import study

VOCAB, CONTEXT = 64, 16


class Sequences:
    """Windows of drawn ids; where `padded`, one of forty ends with ids 0."""

    def __init__(self, padded: bool = False) -> None:
        self.padded = padded

    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.Generator().manual_seed(number)
        window = torch.randint(1, VOCAB, (CONTEXT + 1,), generator=draws)
        if self.padded and number % 40 == 7:
            window[-10:] = 0
        return window[:-1], window[1:]


class Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = (
            nn.Embedding(VOCAB, width),
            nn.Linear(width, width),
            nn.Linear(width, VOCAB),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mixed(self.inner(self.embedding(tokens)))))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Dropping(Plain):
    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.2, self.training)


class Noisy(Plain):
    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x) * self.training


class Centred(Plain):
    """Normalises over the batch while it trains, as a layer of the user's own would."""

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean((0, 1)) if self.training else x


class CentredAndDropping(Plain):
    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x - x.mean((0, 1)) if self.training else x, 0.2, self.training)


class MixedUp(Plain):
    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return 0.9 * x + 0.1 * x[torch.randperm(len(x))] if self.training else x


class Averaging(Plain):
    """Subtracts a moving average of what it saw, as a teacher's centre."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("centre", torch.zeros(width))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        shifted = x - self.centre
        if self.training:
            self.centre = (0.9 * self.centre + 0.1 * x.mean((0, 1))).detach()
        return shifted


class Counting(Plain):
    """Has a state that no sample has a part in."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("steps", torch.zeros(()))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        return x / (1 + self.steps / 1000)


class Balanced(Plain):
    """Adds a loss of how evenly the batch uses four experts."""

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore
        chances = self.inner(self.embedding(tokens))[..., :4].softmax(-1).flatten(0, 1)
        shares = F.one_hot(chances.argmax(-1), 4).float().mean(0)
        return super().forward(tokens), 4 * (shares * chances.mean(0)).sum()


class ChosenByExperts(Plain):
    """Experts choose among the tokens of the whole batch."""

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        places = rows[:, 0].topk(len(rows) // 4).indices
        return rows.index_add(0, places, rows[places]).view_as(x)


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def padded_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)


def balanced_loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    return token_loss(outputs[0], targets) + outputs[1]


def no_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return token_loss(logits, targets).detach()


def overflowing(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (1e4 * token_loss(logits, targets)).exp()


def traits(model_class: type[nn.Module], loss=token_loss, padded: bool = False) -> LossTraits:
    return look_at_loss(model_class, {}, "width", 8, telling_batch(Sequences(padded)), loss, None).traits


@pytest.mark.parametrize("model_class", [Plain, Dropping, Noisy, Counting])
def test_samples_that_keep_apart_may_have_any_layout(model_class):
    assert traits(model_class).depends_on_layout is None


@pytest.mark.parametrize(
    ("model_class", "said"),
    [
        (Centred, "normalises over the batch"),
        (CentredAndDropping, "normalises over the batch"),
        (MixedUp, "mixes the samples of a batch"),
        (Averaging, "keeps something of the samples that it saw"),
    ],
)
def test_samples_that_meet_in_training_alone_hold_the_layout(model_class, said):
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    found = traits(model_class)
    assert said in (found.depends_on_layout or "")
    assert found.needs_one_gpu
    assert torch.equal(torch.rand(1), before)  # nothing was drawn from the user's generators


@pytest.mark.parametrize(
    ("model_class", "loss", "padded"),
    [(Balanced, balanced_loss, False), (ChosenByExperts, token_loss, False), (Plain, padded_loss, True)],
)
def test_samples_that_meet_in_the_loss_are_refused(model_class, loss, padded):
    """Padding told by an id makes sums of unlike numbers of targets; it is met in one sample of forty."""
    with pytest.raises(PlanError, match=r"the loss of a batch of 4 is .* or over targets that are not -100"):
        traits(model_class, loss, padded)


def test_a_loss_that_is_no_number_is_refused_before_anything_is_made_of_it():
    with pytest.raises(PlanError, match=r"the loss of 4 samples of the data is inf on a small model"):
        traits(Plain, overflowing)


def test_a_loss_without_a_gradient_is_refused_at_planning():
    options = {"dataset": Sequences(), "size_multiple_of": 8, "compute_budgets": [2e9], "train": False}
    with pytest.raises(PlanError, match=r"what a gradient can be taken of; .* leave detach\(\) and argmax out"):
        study(Plain, loss_fn=no_gradient, **options)
