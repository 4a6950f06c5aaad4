"""The built-in decoder: pre-RMSNorm, rotary positions, SwiGLU, SDPA attention with grouped queries, no biases.

What it may have beyond that is in `DecoderOptions`.

Weights are drawn inside each layer's constructor, never afterwards: under `deepspeed.zero.Init` a parameter is
partitioned as soon as its layer is built, and a later initialisation would touch an empty tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.train.model import cross_entropy
from flopsfit_ds.train.model.cross_entropy import LossRules
from flopsfit_ds.train.model.masks import attention_bias

_INIT_STD = 0.02  # GPT-2's `initializer_range`


def hidden_std(shape: ModelShape) -> float:
    """Standard deviation of the weights between widths; under muP its square goes by 1 / width."""
    return _INIT_STD if shape.mup is None else _INIT_STD / math.sqrt(shape.mup.width)


class _CastBefore(torch.autograd.Function):
    """A weight's copy that was made earlier, as if it were made here."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, cast: torch.Tensor) -> torch.Tensor:
        return cast.view_as(cast)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        return gradient.float(), None


def in_product(layer: Projection | TokenEmbedding) -> torch.Tensor:
    """The weight that is multiplied: the layer's, or its copy, from which gradients flow to it."""
    if layer.cast is None:
        return layer.weight
    # a copy with a graph of its own, older than the forward pass, would get its gradient after all other tensors
    return _CastBefore.apply(layer.weight, layer.cast)  # pyright: ignore[reportReturnType]


class Projection(nn.Linear):
    """A linear layer without bias, drawn from a normal distribution of standard deviation `std`.

    Attributes:
        cast: The weight in the type of products, where it is kept from micro-batch to micro-batch; see `casts.py`.
    """

    cast: torch.Tensor | None = None

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        self._std = std
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights; called by the constructor."""
        nn.init.normal_(self.weight, std=self._std)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(input, in_product(self))


class Head(Projection):
    """The output head: logits, or with targets their losses, while its own weight is at hand under ZeRO-3."""

    def forward(
        self,
        input: torch.Tensor,
        targets: torch.Tensor | None = None,
        reduce: bool = True,
        rules: LossRules = cross_entropy.PLAIN,
    ) -> torch.Tensor:
        """See `Decoder.forward`."""
        return logits_or_losses(input, self, rules, targets, reduce)


def logits_or_losses(
    x: torch.Tensor, table: Head | TokenEmbedding, rules: LossRules, targets: torch.Tensor | None, reduce: bool
) -> torch.Tensor:
    """See `Decoder.forward`; `x` is the head's input, `table` has its weight."""
    if targets is None:
        return cross_entropy.capped(F.linear(x, in_product(table)), rules.logit_softcap)
    if reduce:
        return cross_entropy.mean_loss(x, table.weight, targets, rules, table.cast)
    return cross_entropy.token_losses(x, table.weight, targets, rules)


class TokenEmbedding(nn.Embedding):
    """A token embedding drawn from a normal distribution.

    Attributes:
        cast: As of `Projection`, where the table is the output head too.
    """

    cast: torch.Tensor | None = None

    def reset_parameters(self) -> None:
        """Draw the weights; called by the constructor."""
        nn.init.normal_(self.weight, std=_INIT_STD)


class LearnedPositions(nn.Module):
    """A vector for each position, added to the token's."""

    def __init__(self, context_length: int, hidden_size: int) -> None:
        super().__init__()
        # not an `nn.Embedding`: of these, optimisers take the one with most rows for the vocabulary's
        self.position_embedding = nn.Parameter(nn.init.normal_(torch.empty(context_length, hidden_size), std=_INIT_STD))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] to the same."""
        return x + self.position_embedding[: x.shape[1]]


def rotary_tables(context_length: int, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions (Su et al., 2021), each [context_length, head_dim]."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to [batch, heads, tokens, head_dim], in fp32, back in the type of `x`."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cosines + turned * sines).to(x.dtype)


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the tokens' positions."""


class Attention(nn.Module):
    """Causal self-attention; several query heads may share a key-value head."""

    def __init__(self, shape: ModelShape, output_std: float) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        std = hidden_std(shape)
        self.query = Projection(shape.hidden_size, shape.hidden_size, std)
        self.key = Projection(shape.hidden_size, shape.kv_size, std)
        self.value = Projection(shape.hidden_size, shape.kv_size, std)
        away = 1.0 if shape.mup is None else shape.mup.head
        # muP's 1 / d, which at the base is the usual 1 / sqrt(d), SDPA's own
        self.score_scale = None if away == 1 else 1 / math.sqrt(self.head_dim * away)
        self.output = Projection(shape.hidden_size, shape.hidden_size, output_std)
        self.query_norm = nn.RMSNorm(self.head_dim) if shape.options.qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_dim) if shape.options.qk_norm else None

    def forward(self, x: torch.Tensor, rotation: Rotation | None, bias: torch.Tensor | None) -> torch.Tensor:
        """[batch, tokens, hidden] to the same; `bias` is what is not seen, None for what comes after."""
        batch, tokens, hidden = x.shape
        query = self.query(x).view(batch, tokens, self.num_heads, self.head_dim)
        key = self.key(x).view(batch, tokens, self.num_kv_heads, self.head_dim)
        value = self.value(x).view(batch, tokens, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if self.query_norm is not None and self.key_norm is not None:  # in fp32, as norms are, and so is what follows
            query, key = self.query_norm(query.float()), self.key_norm(key.float())
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        key, grouped = key.to(value.dtype), self.num_kv_heads != self.num_heads
        if bias is not None and grouped:  # no fused kernel of CUDA takes a mask and grouped queries
            key, value = (each.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(
            query.to(value.dtype),
            key,
            value,
            attn_mask=bias,
            is_causal=bias is None,
            scale=self.score_scale,
            enable_gqa=grouped and bias is None,
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, hidden))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    def __init__(self, shape: ModelShape, output_std: float) -> None:
        super().__init__()
        self.gate = Projection(shape.hidden_size, shape.intermediate_size, hidden_std(shape))
        self.up = Projection(shape.hidden_size, shape.intermediate_size, hidden_std(shape))
        self.down = Projection(shape.intermediate_size, shape.hidden_size, output_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PlainMLP(nn.Module):
    """Feed-forward layer of two matrices around a GELU."""

    def __init__(self, shape: ModelShape, output_std: float) -> None:
        super().__init__()
        self.up = Projection(shape.hidden_size, shape.intermediate_size, hidden_std(shape))
        self.down = Projection(shape.intermediate_size, shape.hidden_size, output_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] to the same."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and around a residual."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        # residual branches, as GPT-2 (Radford et al., 2019); by layer, Zhang et al. (2019)
        depth = layer + 1 if shape.options.depth_scaled_init else shape.num_layers
        self.branch_factor = 1.0 if shape.mup is None else shape.mup.branch_factor
        # where a multiplier scales branches by depth, they are drawn as the base's are
        output_std = hidden_std(shape) / math.sqrt(2 * depth * self.branch_factor)
        self.attention_norm = nn.RMSNorm(shape.hidden_size)
        self.attention = Attention(shape, output_std)
        self.mlp_norm = nn.RMSNorm(shape.hidden_size)
        self.mlp = (SwiGLU if shape.options.activation == "swiglu" else PlainMLP)(shape, output_std)

    def forward(self, x: torch.Tensor, rotation: Rotation | None, bias: torch.Tensor | None) -> torch.Tensor:
        """[batch, tokens, hidden] to the same."""
        x = torch.add(x, self.attention(self.attention_norm(x), rotation, bias), alpha=self.branch_factor)
        return torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.branch_factor)


def call_block(block: nn.Module, x: torch.Tensor, rotation: Rotation | None, bias: torch.Tensor | None) -> torch.Tensor:
    """The block's output; what is compiled in its place takes the block too, so that layers alike share one graph."""
    return block(x, rotation, bias)


class Decoder(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, vocab], or to losses."""

    cosines: torch.Tensor | None
    sines: torch.Tensor | None

    def __init__(self, shape: ModelShape, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.tied = shape.tied_embeddings
        self.windows = shape.windows
        self.head_factor = 1.0 if shape.mup is None else 1 / shape.mup.width
        self.loss_rules = LossRules(shape.options.logit_softcap, shape.options.z_loss_weight)
        self.embedding = TokenEmbedding(shape.vocab_size, shape.hidden_size)
        learned = shape.options.positions == "learned"
        self.positions = LearnedPositions(shape.context_length, shape.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size)
        if not self.tied:
            self.head = Head(shape.hidden_size, shape.vocab_size, _INIT_STD)
        cosines = sines = None
        if not learned:
            cosines, sines = rotary_tables(shape.context_length, shape.head_dim, shape.rope_base)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self.train_block: Callable[..., torch.Tensor] = call_block

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        reduce: bool = True,
        document_starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token at every position; with targets, losses, for which never all logits are held.

        Args:
            tokens: Ids, [batch, tokens].
            targets: Ids of the tokens that follow, [batch, tokens].
            reduce: The mean of all losses, as trained on, a scalar; else each token's cross-entropy, [batch, tokens],
                without gradients.
            document_starts: For each token where in the sequence its document begins, before which nothing is seen,
                [batch, tokens]; positions count from the sequence's beginning all the same. None where all is seen.
        """
        x = self.embedding(tokens)
        rotation = None
        if self.positions is not None:
            x = self.positions(x)
        elif self.cosines is not None and self.sines is not None:
            rotation = self.cosines[: tokens.shape[1]], self.sines[: tokens.shape[1]]
        call = self.train_block if self.training else call_block  # the loss of a run is measured without a compiler
        biases = self._biases(x, document_starts)
        for block, window in zip(self.blocks, self.windows, strict=True):
            if self.activation_checkpointing and self.training:
                x = checkpoint(call, block, x, rotation, biases.get(window), use_reentrant=False)
            else:
                x = call(block, x, rotation, biases.get(window))
        x = self.norm(x)
        if self.head_factor != 1:
            x = x * self.head_factor
        if targets is not None:
            x = cross_entropy.as_autocast_would(x)  # what the norm gave need not outlive the loss
        if self.tied:
            return logits_or_losses(x, self.embedding, self.loss_rules, targets, reduce)
        return self.head(x, targets, reduce, self.loss_rules)

    def _biases(self, x: torch.Tensor, starts: torch.Tensor | None) -> dict[int, torch.Tensor]:
        """What layers of each window do not see beside what comes after: made once for all that see alike."""
        tokens, dtype = x.shape[1], cross_entropy.as_autocast_would(x[:1, :1]).dtype
        return {
            window: attention_bias(tokens, window, dtype, x.device, starts)
            for window in {*self.windows}
            if window < tokens or starts is not None
        }
