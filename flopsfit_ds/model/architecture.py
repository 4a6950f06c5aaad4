"""Shapes of the built-in decoder: how large, how many parameters, and which shape comes nearest to a size."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.units import format_count

_MAX_LAYERS = 256  # twice those of Llama 3 405B, 126
_MAX_WIDTH = 65536  # four times that of Llama 3 405B
LEARNED_POSITIONS = "positions.position_embedding"
"""Name of the decoder's table of learned positions."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `total` counts each tensor once, so tied embeddings count once.

    Attributes:
        embedding: The token embedding.
        attention: Query, key, value and output projections of all layers.
        mlp: The matrices of all feed-forward layers.
        norm: All RMSNorm weights.
        head: The output head; 0 where it is the embedding.
        positions: Learned positions; 0 for rotary ones.
    """

    embedding: int
    attention: int
    mlp: int
    norm: int
    head: int
    positions: int = 0

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.attention + self.mlp + self.norm + self.head + self.positions

    @property
    def non_embedding(self) -> int:
        """All but vocabulary-sized tables and learned positions, as Kaplan et al. (2020, section 2.1) count."""
        return self.attention + self.mlp + self.norm


@dataclass(frozen=True)
class DecoderOptions:
    """What the built-in decoder may have beyond its plain form; all of it is off by default.

    Attributes:
        qk_norm: Queries and keys of each head go through an RMSNorm of their own (Dehghani et al., 2023).
        activation: Of the feed-forward layer: gated by SiLU in three matrices, or GELU between two.
        depth_scaled_init: A residual branch is drawn by how deep its own layer is, not by how many layers there are.
        positions: Rotary ones, or a learned vector for each.
        logit_softcap: Logits c become s tanh(c / s) (Gemma 2); 0 for none.
        z_loss_weight: What the square of log Z counts in training (PaLM; Chowdhery et al., 2022, section 5); 0 for
            none.
        sliding_window: Tokens that a query of a local layer sees, itself among them (Beltagy et al., 2020); 0 for all.
        sliding_window_pattern: Which layers are local; repeated over all of them, from the first on.
        attention_across_documents: A token sees those of the documents before its own.
    """

    qk_norm: bool = False
    activation: Literal["swiglu", "gelu"] = "swiglu"
    depth_scaled_init: bool = False
    positions: Literal["rotary", "learned"] = "rotary"
    logit_softcap: float = 0.0
    z_loss_weight: float = 0.0
    sliding_window: int = 0
    sliding_window_pattern: tuple[Literal["local", "global"], ...] = ("local",)
    attention_across_documents: bool = True

    @property
    def mlp_matrices(self) -> int:
        """Matrices of a feed-forward layer."""
        return 3 if self.activation == "swiglu" else 2


@dataclass(frozen=True)
class MupScales:
    """How far a model lies from the base of muP; all it needs to know of the base.

    Attributes:
        width: Its width over the base's.
        depth: Its layers over the base's; None where depth is left as it is.
        head: The width of its heads over the base's.
        branches: Of modules whose output is added to the residual stream, glob patterns of names.
        groups: Of a class that declares them, names of its parameters by the kind that an optimiser takes them for.
    """

    width: float
    depth: float | None = None
    head: float = 1.0
    branches: tuple[str, ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def branch_factor(self) -> float:
        """What a branch is multiplied by before it is added: CompleteP's 1 / depth."""
        return 1.0 if self.depth is None else 1 / self.depth


@dataclass(frozen=True)
class ModelShape:
    """One decoder-only transformer: pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases.

    Attributes:
        num_layers: Blocks.
        hidden_size: Width of the residual stream.
        num_heads: Query heads, each `hidden_size / num_heads` wide.
        num_kv_heads: Key-value heads.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Token ids.
        context_length: Tokens a sequence.
        tied_embeddings: The output head is the token embedding.
        rope_base: Base of the rotary frequencies.
        options: What is not of that plain form.
        mup: How far it lies from the base of muP; None without.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool = False
    rope_base: float = 10000.0
    family: Literal["decoder"] = "decoder"
    options: DecoderOptions = DecoderOptions()
    mup: MupScales | None = None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_size(self) -> int:
        """Width of the keys (and of the values) of all heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def windows(self) -> tuple[int, ...]:
        """Of each layer, how many tokens a query sees at most, itself among them."""
        pattern, context = self.options.sliding_window_pattern, self.context_length
        local = min(self.options.sliding_window or context, context)
        return tuple(local if pattern[layer % len(pattern)] == "local" else context for layer in range(self.num_layers))

    @property
    def masked_layers(self) -> int:
        """Layers whose attention is not just causal, and takes a mask."""
        if not self.options.attention_across_documents:
            return self.num_layers
        return sum(window < self.context_length for window in self.windows)

    @property
    def norms_of_heads(self) -> int:
        """Weights of a layer's norms of queries and keys, which all its heads share."""
        return 2 * self.head_dim if self.options.qk_norm else 0

    @property
    def parameters(self) -> ParameterCounts:
        """Exact counts of the module that `flopsfit_ds.train.model.decoder` builds."""
        hidden = self.hidden_size
        table = self.vocab_size * hidden
        return ParameterCounts(
            embedding=table,
            attention=self.num_layers * (2 * hidden * hidden + 2 * hidden * self.kv_size),
            mlp=self.num_layers * self.options.mlp_matrices * hidden * self.intermediate_size,
            norm=(2 * self.num_layers + 1) * hidden + self.num_layers * self.norms_of_heads,
            head=0 if self.tied_embeddings else table,
            positions=self.context_length * hidden if self.options.positions == "learned" else 0,
        )

    def tensors(self) -> Iterator[tuple[str, int]]:
        """Name and number of elements of every parameter tensor, as the built module names them."""
        hidden, table = self.hidden_size, self.vocab_size * self.hidden_size
        yield "embedding.weight", table
        if self.options.positions == "learned":
            yield LEARNED_POSITIONS, self.context_length * hidden
        for layer in range(self.num_layers):
            block = f"blocks.{layer}"
            yield f"{block}.attention_norm.weight", hidden
            yield f"{block}.attention.query.weight", hidden * hidden
            yield f"{block}.attention.key.weight", hidden * self.kv_size
            yield f"{block}.attention.value.weight", hidden * self.kv_size
            yield f"{block}.attention.output.weight", hidden * hidden
            if self.options.qk_norm:
                yield f"{block}.attention.query_norm.weight", self.head_dim
                yield f"{block}.attention.key_norm.weight", self.head_dim
            yield f"{block}.mlp_norm.weight", hidden
            if self.options.activation == "swiglu":
                yield f"{block}.mlp.gate.weight", hidden * self.intermediate_size
            yield f"{block}.mlp.up.weight", hidden * self.intermediate_size
            yield f"{block}.mlp.down.weight", hidden * self.intermediate_size
        yield "norm.weight", hidden
        if not self.tied_embeddings:
            yield "head.weight", table


@dataclass(frozen=True)
class ClassShape:
    """One size of a user's own class.

    Attributes:
        class_path: `package.module:Class`.
        arguments: The constructor's arguments, the size parameter among them, sorted by name.
        size_parameter: Which of them sets the size.
        source_hash: Hash of the class and of all the user's code that it refers to: a changed class is a new run.
        vocab_size: Token ids; None where the class is trained on a dataset of the user's own.
        context_length: Tokens (or positions) a sample.
        mup: How far it lies from the base of muP; None without.
    """

    class_path: str
    arguments: tuple[tuple[str, str | int | float | bool | None], ...]
    size_parameter: str
    source_hash: str
    vocab_size: int | None
    context_length: int
    family: Literal["class"] = "class"
    mup: MupScales | None = None


@dataclass(frozen=True)
class HfShape:
    """One size of a causal language model of transformers, known by its configuration.

    Attributes:
        architecture: The `model_type`.
        fields: What is set of its configuration, as JSON with sorted keys; the rest are the architecture's defaults.
        config_hash: Hash of the whole configuration, defaults among it.
        library: Whose code the model is, with its version.
        vocab_size: Token ids.
        context_length: Tokens a sequence.
        router_loss_weight: What the balancing loss that a mixture of experts computes counts in training; 0 for none.
        mup: How far it lies from the base of muP; None without.
    """

    architecture: str
    fields: str
    config_hash: str
    library: str
    vocab_size: int
    context_length: int
    router_loss_weight: float = 0.0
    family: Literal["hf"] = "hf"
    mup: MupScales | None = None


LanguageShape = ModelShape | ClassShape | HfShape
"""What a run trains, by its `family`."""


def shape_identity(shape: LanguageShape) -> dict[str, Any]:
    """What a run's identity has of a shape: all of it, but options that are off, whose runs keep the ids they had."""
    values = asdict(shape)
    if shape.mup is None:
        del values["mup"]
    elif not shape.mup.groups:
        del values["mup"]["groups"]
    if isinstance(shape, ModelShape):
        off = asdict(DecoderOptions())
        options = {name: value for name, value in values.pop("options").items() if value != off[name]}
        values |= {"options": options} if options else {}
    return values


@dataclass(frozen=True)
class SizingRule:
    """How the family grows: the fields of the spec's `model` section that decide width, depth and heads.

    Attributes:
        head_dim: Width of a head; the model's width is a multiple of it.
        width_per_layer: Aimed ratio of width to layers.
        mlp_ratio: Width of the feed-forward layer over the model's.
        mlp_multiple_of: That width is rounded up to a multiple of it.
        query_heads_per_kv_head: Query heads that share a key-value head.
        vocab_size: Token ids.
        context_length: Tokens a sequence.
        tied_embeddings: The output head is the token embedding.
        rope_base: Base of the rotary frequencies.
        options: What is not of the plain form.
    """

    head_dim: int
    width_per_layer: float
    mlp_ratio: float
    mlp_multiple_of: int
    query_heads_per_kv_head: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    rope_base: float
    options: DecoderOptions = DecoderOptions()

    def shape(self, num_layers: int, hidden_size: int) -> ModelShape:
        """The shape of that depth and width (`hidden_size` a multiple of the heads of one group)."""
        num_heads = hidden_size // self.head_dim
        intermediate = math.ceil(hidden_size * self.mlp_ratio / self.mlp_multiple_of) * self.mlp_multiple_of
        return ModelShape(
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_heads // self.query_heads_per_kv_head,
            intermediate_size=intermediate,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            tied_embeddings=self.tied_embeddings,
            rope_base=self.rope_base,
            options=self.options,
        )

    def nearest(self, num_params: float, taken: Container[int] = ()) -> ModelShape:
        """The shape whose total comes nearest to `num_params`, among those near the aimed ratio of width to depth.

        A shape may be half an octave away from the aimed ratio; among these the distance in size counts ten times as
        much as the distance in ratio. Shapes whose total is in `taken` are passed over.

        Raises:
            PlanError: No shape of the family lies within a factor of 2 of that size.
        """
        aimed = math.log(num_params)
        ladder = _ladder(self)
        start = bisect.bisect_left(ladder, (aimed,))
        best_score, best = math.inf, ladder[-1]
        for direction in (range(start, len(ladder)), range(start - 1, -1, -1)):
            for index in direction:
                rung = ladder[index]
                size = abs(rung[0] - aimed)
                if size >= best_score:
                    break
                if rung[4] in taken:
                    continue
                if size + rung[1] < best_score:
                    best_score, best = size + rung[1], rung
        shape = self.shape(best[2], best[3])
        if not 0.5 <= shape.parameters.total / num_params <= 2:
            raise PlanError(
                f"no model of this family has about {format_count(num_params)} parameters: the nearest has "
                f"{format_count(shape.parameters.total)} ({shape.num_layers} layers, width {shape.hidden_size}, "
                f"vocabulary {shape.vocab_size}); change the size, model.head_dim or model.vocab_size"
            )
        return shape


@functools.lru_cache(maxsize=8)
def _ladder(rule: SizingRule) -> list[tuple[float, float, int, int, int]]:
    """All shapes of the family by size: log of the parameters, penalty for the ratio, layers, width, parameters."""
    step = rule.head_dim * rule.query_heads_per_kv_head
    rungs = []
    for hidden in range(step, _MAX_WIDTH + 1, step):
        if hidden > 64 * step and hidden % (step * 2 ** int(math.log2(hidden / step / 32))):
            continue  # coarser steps for large widths: the ladder stays even on a logarithmic scale
        aimed = hidden / rule.width_per_layer
        lowest, highest = max(1, math.floor(aimed / math.sqrt(2))), math.ceil(aimed * math.sqrt(2))
        for layers in range(lowest, min(_MAX_LAYERS, highest) + 1):
            penalty = 0.1 * abs(math.log(aimed / layers))
            total = rule.shape(layers, hidden).parameters.total
            rungs.append((math.log(total), penalty, layers, hidden, total))
    return sorted(rungs)
