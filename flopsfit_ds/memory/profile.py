"""What the closed forms know of a model: parameters by size, activations by sequence."""

from __future__ import annotations

from dataclasses import dataclass

from flopsfit_ds.base.presets import Precision
from flopsfit_ds.memory.states import OptimizerMemory
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.head import CHUNK_BYTES, LOGITS_AT_ONCE

ALLOCATION_BYTES = 512
"""PyTorch's allocator gives a tensor whole pieces of so many (kMinBlockSize of c10/cuda/CUDACachingAllocator.cpp)."""


@dataclass(frozen=True)
class ModelProfile:
    """A model of one size at one precision, as far as memory and speed depend on it.

    Attributes:
        name: For messages: the family, or the class.
        num_params: All parameters, each tensor once.
        num_params_trainable: With a gradient.
        num_params_cast: In weights that autocast casts to bf16 (linear layers); 0 in fp32.
        head_params: Of the output head's weight; 0 without one.
        largest_tensor_params: Of the largest tensor.
        block_params: Of one block.
        block_largest_params: Of the largest tensor of a block.
        num_blocks: Blocks.
        num_blocks_saved: Of these, the ones that keep activations for a backward pass: all but the frozen ones in
            front, where nothing before them is trained.
        width: Typical inner dimension of the matrix products; decides their speed.
        sequence_length: Tokens of a sequence.
        precision: `fp32`, `bf16` autocast, or `bf16-pure`.
        buffer_bytes: Of buffers.
        block_saved_bytes: Saved for the backward pass by one block, a sequence.
        block_saved_bytes_zero3: The same under ZeRO-3's linear layers, which save their input before it is cast.
        block_input_bytes: A block's input, a sequence: all that checkpointing keeps of a block.
        block_transient_bytes: Most that the backward pass of a block holds above what the block saved, a sequence.
        outside_saved_bytes: Saved outside the blocks and the loss, a sequence.
        loss_bytes: Most that logits, loss and their gradients hold at once, a sequence.
        logits_bytes: Gradient of the logits, a sequence.
        input_bytes: Tokens and targets, a sequence.
        block_forward_bytes: Most that a checkpointed block holds in the forward pass beside its input, a sequence; 0
            for a model that checkpoints by itself.
        last_gradient_params: Of a table whose gradient comes after those of all blocks: an embedding with a head of its
            own; 0 where that is not known.
        finds_loss_by_chunks: Whether many logits are never held at once (`model/head.py`).
        uneven_gradients: Whether a batch may pass some parameters by, so that ranks have gradients of different ones.
        leaf_modules: Names of the modules around these parameters that ZeRO-3 must gather whole; none where it cannot
            train the model on several GPUs.
        states: What an optimiser other than AdamW holds; None for AdamW.
        chunk_bytes: Most that a chunk holds where the loss is found by chunks.
        recomputes_blocks: Whether the blocks can be recomputed in the backward pass.
        num_tensors: That are trained, where they are counted one by one; 0 for the decoder, whose tensors are known.
        gap_bytes: What the allocator adds to all parameters, as each takes whole pieces of `ALLOCATION_BYTES`.
        trained_gap_bytes: The part of these that are trained.
        pair_saved_bytes: Saved for each pair of a micro-batch's sequences, as for products of all with all.
        pair_transient_bytes: Most that the backward pass holds above these for each pair.
        held_params: Weights of which the backward pass keeps views, so that ZeRO-3 lets go of none of them after the
            forward pass: the packed projections of `nn.MultiheadAttention`.
        tied_params: Of a table that is embedding and head, whose gradient as a head waits for that as an embedding.
    """

    name: str
    num_params: int
    num_params_trainable: int
    num_params_cast: int
    head_params: int
    largest_tensor_params: int
    block_params: int
    block_largest_params: int
    num_blocks: int
    num_blocks_saved: int
    width: int
    sequence_length: int
    precision: Precision
    buffer_bytes: int
    block_saved_bytes: int
    block_saved_bytes_zero3: int
    block_input_bytes: int
    block_transient_bytes: int
    outside_saved_bytes: int
    loss_bytes: int
    logits_bytes: int
    input_bytes: int
    block_forward_bytes: int = 0
    last_gradient_params: int = 0
    finds_loss_by_chunks: bool = False
    uneven_gradients: bool = False
    leaf_modules: tuple[str, ...] = ()
    states: OptimizerMemory | None = None
    chunk_bytes: int = CHUNK_BYTES
    recomputes_blocks: bool = False
    num_tensors: int = 0
    gap_bytes: int = 0
    trained_gap_bytes: int = 0
    pair_saved_bytes: int = 0
    pair_transient_bytes: int = 0
    held_params: int = 0
    tied_params: int = 0

    @property
    def knows_activations(self) -> bool:
        """Whether what the backward pass needs was measured: every model that is trained saves something."""
        return self.block_saved_bytes > 0


def profile_decoder(
    shape: ModelShape,
    precision: Precision,
    *,
    num_params_trainable: int | None = None,
    num_blocks_without_gradient: int = 0,
) -> ModelProfile:
    """Profile of the built-in decoder, from its shape alone.

    Args:
        shape: The decoder's.
        precision: Of training.
        num_params_trainable: Parameters that are not frozen; without it, all.
        num_blocks_without_gradient: Frozen blocks in front, where the embedding is frozen too: they save nothing, and
            autocast keeps no casts of their weights.

    Per token a block saves, under bf16 autocast: its two fp32 norm inputs; a bf16 cast of the norm's output for each of
    the five projections that read one (autocast keeps casts of weights, not of activations); the rotated queries and
    keys, the values, the attention's output and log-sum-exp; gate, SiLU, up and product of the SwiGLU layer. In fp32,
    and under ZeRO-3's own linear layer, each norm's fp32 output is saved once instead of its casts. Grouped queries in
    fp32 have no fused kernel: scaled queries, expanded keys and values and the softmax are saved instead. Norms of
    queries and keys save their inputs in fp32; a layer of two matrices its GELU's input and output. Attention with a
    mask has expanded keys and values saved, and is fused in fp32 too; the mask itself is there once for all layers.
    """
    counts, options = shape.parameters, shape.options
    tokens, hidden, kv, wide = shape.context_length, shape.hidden_size, shape.kv_size, shape.intermediate_size
    item, kept_item = 4 if precision == "fp32" else 2, 2 if precision == "bf16-pure" else 4  # of products; beside them
    unfused = precision == "fp32" and shape.num_kv_heads != shape.num_heads
    scores = item * shape.num_heads * tokens if unfused else 0
    attention = scores + (item * 4 * hidden if unfused else item * (2 * hidden + 2 * kv) + 4 * shape.num_heads)
    masked = item * 4 * hidden + 4 * shape.num_heads
    attention += (masked - attention) * shape.masked_layers // shape.num_layers
    norm_inputs, kept = 2 * (kept_item * hidden + 4), (4 if options.activation == "swiglu" else 2) * item * wide
    if options.qk_norm:
        norm_inputs += 4 * (hidden + kv + shape.num_heads + shape.num_kv_heads)
    readers = 2 + options.mlp_matrices  # projections that read a norm's output
    outputs = 2 * kept_item * hidden
    casts = readers * item * hidden if precision == "bf16" else outputs
    # saved for the soft cap: its tanh; of the z-loss, a second gradient of the logits, before both are added
    beside_loss = 4 * bool(options.logit_softcap) + 4 * bool(options.z_loss_weight)
    of_sequences = not options.attention_across_documents  # masks, a set for each; else one for all
    masks = item * tokens * tokens * len({w for w in shape.windows if of_sequences or w < tokens})
    table = shape.vocab_size * hidden
    in_blocks, with_gradient = counts.attention + counts.mlp, shape.num_layers - num_blocks_without_gradient
    cast = in_blocks * with_gradient // shape.num_layers + table
    return ModelProfile(
        name="decoder",
        num_params=counts.total,
        num_params_trainable=counts.total if num_params_trainable is None else num_params_trainable,
        num_params_cast=cast if precision == "bf16" else 0,
        head_params=table,
        largest_tensor_params=max(table, counts.positions, hidden * wide, hidden * hidden),
        block_params=in_blocks // shape.num_layers + 2 * hidden + shape.norms_of_heads,
        block_largest_params=hidden * max(wide, hidden),
        num_blocks=shape.num_layers,
        num_blocks_saved=with_gradient,
        width=hidden,
        sequence_length=tokens,
        precision=precision,
        buffer_bytes=(0 if counts.positions else 2 * 4 * tokens * shape.head_dim) + (0 if of_sequences else masks),
        block_saved_bytes=tokens * (norm_inputs + casts + attention + kept),
        block_saved_bytes_zero3=tokens * (norm_inputs + outputs + attention + kept),
        block_input_bytes=tokens * kept_item * hidden,
        block_transient_bytes=tokens * _backward_bytes(shape, item, kept_item, scores),
        outside_saved_bytes=tokens * (kept_item * hidden + 4 + item * hidden),
        loss_bytes=tokens * (12 + beside_loss) * shape.vocab_size,
        logits_bytes=tokens * item * shape.vocab_size,
        finds_loss_by_chunks=True,
        input_bytes=16 * tokens + (8 * tokens + masks if of_sequences else 0),
        block_forward_bytes=tokens * _forward_bytes(shape, item, kept_item, scores),
        last_gradient_params=counts.positions + (0 if shape.tied_embeddings else table),
        tied_params=table if shape.tied_embeddings else 0,
        chunk_bytes=CHUNK_BYTES + 4 * LOGITS_AT_ONCE * bool(options.logit_softcap),
    )


def _backward_bytes(shape: ModelShape, item: int, kept_item: int, scores: int) -> int:
    """Most that a block's backward pass holds above what the block saved, bytes a token.

    Args:
        shape: The decoder's.
        item: Bytes of an element of a matrix product.
        kept_item: Of the residual, and of what norms give.
        scores: Bytes a token of the attention's softmax where it is a tensor of its own; else 0.
    """
    hidden, wide = shape.hidden_size, shape.intermediate_size
    gated = shape.options.activation == "swiglu"
    # the SwiGLU layer: gradients of the product, which is freed itself, of its two factors and of the residual;
    # that of two matrices: of GELU's output, which is freed itself, of its input and of the residual
    residual = kept_item * hidden
    feed_forward = (2 if gated else 1) * item * wide + residual
    casts = (2 if gated else 1) * 2 * hidden
    freed = (4 if gated else 2) * item * wide + residual + (casts if item != kept_item else residual)
    # of attention with a mask: gradients in and out, of keys and values that are expanded; the residual's
    masked = 4 * item * hidden + residual if shape.masked_layers else 0
    if shape.masked_layers == shape.num_layers:
        return max(feed_forward, masked - freed)
    if scores:  # gradients of the softmax and of its input, of the residual and of the values, which are freed
        return max(feed_forward, max(masked, 2 * scores + 8 * hidden) - freed)
    # gradients in and out, the kernel's fp32 accumulator, the residual's
    fused = 4 * hidden + item * (2 * hidden + 2 * shape.kv_size) + residual
    return max(feed_forward, max(masked, fused) - freed)


def _forward_bytes(shape: ModelShape, item: int, kept_item: int, scores: int) -> int:
    """Most that a checkpointed block's forward pass holds beside its input, bytes a token; arguments as above."""
    hidden, kv, wide = shape.hidden_size, shape.kv_size, shape.intermediate_size
    norm_output, projections = kept_item * hidden, item * (hidden + 2 * kv)
    # in fp32: the halves turned, two products, their sum; in bf16 a cast before, which may be to be normed, as in fp32
    rotation = 0 if shape.parameters.positions else (5 if item == 2 or shape.options.qk_norm else 4) * 4
    if not rotation and shape.options.qk_norm:
        rotation = 8 if item == 2 else 4
    inner = 3 if shape.options.activation == "swiglu" else 2  # SiLU, up and product; or GELU's input and output
    return max(
        norm_output + projections + rotation * hidden,
        norm_output + projections + item * hidden + rotation * kv,
        # scaled queries, expanded keys and values beside the rotated ones, scores and the masked scores
        norm_output + projections + item * (4 * hidden + kv) + 2 * scores
        if scores and shape.masked_layers < shape.num_layers
        else 0,
        # expanded keys and values beside them and the output
        norm_output + projections + item * (4 * hidden + kv) if shape.masked_layers and kv < hidden else 0,
        2 * norm_output + inner * item * wide,  # beside the residual and the norm's output
    )
