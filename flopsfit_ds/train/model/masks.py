"""Which tokens attention sees, where that is not all that came before."""

from __future__ import annotations

import torch


def attention_bias(
    num_tokens: int, window: int, dtype: torch.dtype, device: torch.device, document_starts: torch.Tensor | None
) -> torch.Tensor:
    """What is added to attention's scores: 0 where a query sees a key, else minus infinity.

    It has the type that attention is computed in: kernels would make a copy of any other, and keep one a layer.

    Args:
        num_tokens: Of a sequence.
        window: Tokens that a query sees at most, itself among them.
        dtype: Of the queries.
        device: Of the queries.
        document_starts: For each token where its document begins, [batch, tokens]; None where all is seen.

    Returns:
        [1, 1, tokens, tokens], or with documents [batch, 1, tokens, tokens].
    """
    key = torch.arange(num_tokens, device=device)
    query = key[:, None]
    hidden = (key > query).logical_or_(key <= query - window)[None, None]
    if document_starts is not None:
        hidden = (key < document_starts[:, None, :, None]).logical_or_(hidden)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
