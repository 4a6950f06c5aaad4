"""Cross-entropy of the next token that never holds the logits of all tokens.

The output head is the widest layer: at a vocabulary of 128 k, the logits of 16 k tokens, their softmax and their
gradients take 24 GiB in fp32. Here the head is applied to a few tokens at a time, and the gradients with respect to its
input and its weight are found at once, while the chunk's logits are at hand; the backward pass only scales them.
Nothing is computed twice, and what is computed for a token is what the plain way computes for it. Where one chunk would
do, the plain way is to be taken: it holds no more, and small models spend less time on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from flopsfit_ds.model import head


class LossRules(NamedTuple):
    """What a loss has beside the cross-entropy of logits as they come; see `DecoderOptions`."""

    logit_softcap: float = 0.0
    z_loss_weight: float = 0.0


PLAIN = LossRules()


def capped(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    """Logits kept below a limit, then in fp32; as they are where it is 0."""
    return (logits.float() / softcap).tanh() * softcap if softcap else logits


def plain_losses(logits: torch.Tensor, targets: torch.Tensor, z_loss_weight: float = 0.0) -> torch.Tensor:
    """Cross-entropy in nats, in fp32: logits [batch, tokens, vocab], targets and result [batch, tokens].

    With a weight, and so many times the square of each token's log-partition function.
    """
    wide, wanted = logits.float().flatten(0, 1), targets.flatten()
    losses = F.cross_entropy(wide, wanted, reduction="none")
    if z_loss_weight:
        losses = losses + z_loss_weight * (losses + wide.gather(1, wanted[:, None])[:, 0]).square()
    return losses.view(targets.shape)


def mean_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    rules: LossRules = PLAIN,
    cast: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean loss over all tokens, in nats, a scalar in fp32; gradients flow to `hidden` and `weight`.

    Args:
        hidden: Input of the head, [batch, tokens, hidden].
        weight: Of the head, [vocab, hidden].
        targets: Token ids, [batch, tokens].
        rules: What there is beside cross-entropy.
        cast: The weight in the type of products, where it is at hand.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    return _MeanLoss.apply(rows, weight, wanted, rules, cast)  # pyright: ignore[reportReturnType]


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rules: LossRules = PLAIN
) -> torch.Tensor:
    """Cross-entropy of each token, in nats, [batch, tokens] in fp32, without gradients; arguments as of `mean_loss`."""
    measured = rules._replace(z_loss_weight=0.0)
    with torch.no_grad():
        found = _by_chunks(hidden.flatten(0, 1), weight, targets.flatten(), measured, False, False)
    return found[0].view(targets.shape)


def as_autocast_would(x: torch.Tensor) -> torch.Tensor:
    """A tensor in the type that autocast gives to the operands of a product; as it is where autocast is off."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class _MeanLoss(torch.autograd.Function):
    """Keeps the gradients instead of what they would be found from."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        rules: LossRules,
        cast: torch.Tensor | None,
    ) -> torch.Tensor:
        table = weight if cast is None else cast
        losses, *gradients = _by_chunks(hidden, table, targets, rules, *ctx.needs_input_grad[:2])
        ctx.gradients, ctx.dtypes = gradients, (hidden.dtype, weight.dtype)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        """Scaled in place, since each may be as large as the layer; a second backward pass finds nothing."""
        gradients, ctx.gradients = ctx.gradients, (None, None)
        scaled = (
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _by_chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    rules: LossRules,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Loss of each token, and the gradients of their mean; products in autocast's type where it is on, sums in fp32."""
    rows, table = as_autocast_would(hidden.detach()), as_autocast_would(weight.detach())
    with torch.autocast(hidden.device.type, enabled=False):
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(rows) if for_hidden else None
        to_weight = torch.zeros_like(table, dtype=torch.float32) if for_weight else None
        length = max(1, head.LOGITS_AT_ONCE // len(table))
        for begin in range(0, len(targets), length):
            part = slice(begin, begin + length)
            wanted, with_gradient = targets[part, None], for_hidden or for_weight
            losses[part], gradient = _chunk(rows[part], table, wanted, rules, len(targets), with_gradient)
            if gradient is not None and to_hidden is not None:
                torch.mm(gradient, table, out=to_hidden[part])
            if gradient is not None and to_weight is not None:
                _add_product(to_weight, gradient.T, rows[part])
            del gradient  # or it would be there beside the next chunk
    return losses, to_hidden, to_weight


def _chunk(
    rows: torch.Tensor,
    table: torch.Tensor,
    wanted: torch.Tensor,
    rules: LossRules,
    num_tokens: int,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses of a few tokens, and the gradient of the mean over all with respect to their logits."""
    logits, squashed = (rows @ table.T).float(), None
    if rules.logit_softcap:
        squashed = logits.div_(rules.logit_softcap).tanh_()
        logits = squashed * rules.logit_softcap
    log_shares = F.log_softmax(logits, dim=1)
    losses = -log_shares.gather(1, wanted)
    share_scale: float | torch.Tensor = 1 / num_tokens
    if rules.z_loss_weight:
        log_sums = losses + logits.gather(1, wanted)
        losses = losses + rules.z_loss_weight * log_sums.square()
        share_scale = (1 + 2 * rules.z_loss_weight * log_sums) / num_tokens
    del logits  # or it would be there beside the next chunk's
    if not with_gradient:
        return losses[:, 0], None
    gradient = log_shares.exp_().mul_(share_scale)
    gradient.scatter_add_(1, wanted, torch.full_like(wanted, -1 / num_tokens, dtype=torch.float32))
    if squashed is not None:
        gradient.mul_(squashed.square_().neg_().add_(1))
    return losses[:, 0], gradient.to(table.dtype)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to a wider tensor, a few rows at a time: the product of a whole head is a GiB by itself."""
    length = max(1, head.LOGITS_AT_ONCE // total.shape[1])
    for begin in range(0, len(total), length):
        part = slice(begin, begin + length)
        total[part] += left[part] @ right
