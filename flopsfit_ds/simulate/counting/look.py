"""A look at one training step of a module on tensors without memory: FLOPs, saved activations, and who takes part."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree

from flopsfit_ds.simulate.counting.attention import fused_attention
from flopsfit_ds.simulate.counting.products import attention_flops, keys_seen, product_of
from flopsfit_ds.simulate.counting.values import Values, forget_value, known_value

_aten = torch.ops.aten
_MULTIPLICATIONS = (_aten.mul.Tensor,)
_SUMS = (_aten.sum.dim_IntList,)
_BY_VECTOR = (_aten.mv.default, _aten.addmv.default)
_MASKS_KEPT = 2
"""Of whose keys the number is remembered: layers share a mask, or two where some of them see a window."""


@dataclass
class Seen:
    """What was seen of a step, over all samples of the batch.

    Attributes:
        forward_flops: Of the forward pass.
        backward_flops: Of the backward pass; recomputation left out.
        saved_bytes: Kept between the two, weights left out.
        saved_in_blocks_bytes: Of these, what the blocks named to `look` keep.
        block_input_bytes: What the first of them is given.
        used: FLOPs of the forward pass that a parameter is a factor of, by name.
        looked_up: Names of the parameters that rows are picked from.
        grouped: Names of the parameters of which rows find their matrix by an index.
        routed: For parameters used after a choice among weights' values: how many values it was made among, and of
            how many one was chosen.
        trained: Names of the parameters that got a gradient.
        decided: Whether control flow depended on a choice among weights' values.
        decided_by_batch: Whether it depended on values of the batch.
        unknown_masks: Attention calls with a mask of unknown values.
        loss: What the loss function returned.
    """

    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    saved_in_blocks_bytes: int = 0
    block_input_bytes: int = 0
    used: dict[str, int] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)
    grouped: set[str] = field(default_factory=set)
    routed: dict[str, tuple[int, int]] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    decided: bool = False
    decided_by_batch: bool = False
    unknown_masks: int = 0
    loss: Any = None


class Looker:
    """A place without memory in which a module is built and looked at."""

    def __init__(self, one_for_all: bool = False) -> None:
        """With `one_for_all`, all choices among weights' values fall on the first; otherwise they are drawn."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values = Values(self._mode, self._see, one_for_all)
        self._seen = Seen()
        self._backward = False
        self._names: dict[int, str] = {}
        self._sizes: dict[str, int] = {}
        self._stacks: dict[str, int] = {}
        self._masks: list[tuple[torch.Tensor, int]] = []

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        fast = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)  # oneDNN's kernels would hide what recurrent layers multiply
        try:
            with self._mode, self._values, _formatted_by_value():
                yield
        finally:
            torch._C._set_mkldnn_enabled(fast)

    def build(self, model_class: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
        """The module, with weights of unknown values."""
        with self._inside():
            model = model_class(**arguments)
            for parameter in model.parameters():
                forget_value(parameter)
        return model

    def look(
        self,
        model: nn.Module,
        batch: Any,
        loss: Callable[[nn.Module, Any], torch.Tensor],
        blocks: Sequence[nn.Module] = (),
    ) -> Seen:
        """Run forward and backward pass; the loss's value stands in `loss`, whatever it is."""
        self._seen = seen = Seen()
        parameters = dict(model.named_parameters())
        self._names = {parameter.untyped_storage()._cdata: name for name, parameter in parameters.items()}
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._stacks = {name: parameter.shape[0] for name, parameter in parameters.items() if parameter.ndim >= 3}
        weights = set(self._names) | {buffer.untyped_storage()._cdata for buffer in model.buffers()}
        kept: dict[int, Any] = {}
        in_blocks = InBlocks(blocks)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                if in_blocks.inside and storage._cdata not in kept:
                    seen.saved_in_blocks_bytes += storage.nbytes()
                kept[storage._cdata] = storage
            return tensor

        with self._inside(), fused_attention(self._attention):
            fakes = _pytree.tree_map_only(torch.Tensor, lambda tensor: self._values.fake(tensor, given=True), batch)
            self._backward = False
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                seen.loss = loss(model, fakes)
            in_blocks.close()
            seen.block_input_bytes = in_blocks.input_bytes
            seen.saved_bytes = sum(storage.nbytes() for storage in kept.values())
            kept.clear()
            if isinstance(seen.loss, torch.Tensor) and seen.loss.ndim == 0 and seen.loss.requires_grad:
                self._backward = True
                seen.loss.backward()
        self._masks.clear()
        seen.trained = {name for name, parameter in parameters.items() if parameter.grad is not None}
        seen.decided, seen.decided_by_batch = self._values.decided, self._values.decided_by_batch
        for parameter in parameters.values():
            parameter.grad = None
        return seen

    def _see(self, operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        product = product_of(operation, args, kwargs)
        if product is not None:
            self._count(product.flops)
            if not self._backward:
                self._use(product.factors, product.flops, product.grouped)
                if operation in _BY_VECTOR and product.factors[0].requires_grad:
                    self._seen.backward_flops += product.flops  # an outer product, which is no operation of its own
        elif operation in _MULTIPLICATIONS:
            if _is_spread(args[0], out) and _is_spread(args[1], out):
                vars(out)["_flopsfit_spread"] = args[:2]
        elif operation in _SUMS:
            factors = args[0].__dict__.get("_flopsfit_spread")
            if factors is not None:
                self._count(2 * args[0].numel())
                if not self._backward:
                    self._use(factors, 2 * args[0].numel(), grouped=False)
        if operation is _aten.embedding.default:
            self._seen.looked_up.update(self._origins(args[0]))
        elif not self._backward and product is None:
            self._pass_on(operation, args, out)

    def _count(self, flops: int) -> None:
        if not self._backward:
            self._seen.forward_flops += flops
        elif not torch.is_grad_enabled():  # a checkpointed block is computed again with gradients enabled
            self._seen.backward_flops += flops

    def _attention(self, query: Any, key: Any, value: Any, mask: Any) -> Callable[[bool], None]:
        width = key.shape[-2]
        if mask is not None:
            known = known_value(mask)
            if known is None:
                self._seen.unknown_masks += 1
            else:
                width = min(width, self._keys_seen(known))
        scores, mix = attention_flops(query, key, value, width)
        trained = [tensor.requires_grad for tensor in (query, key, value)]
        # of the scores come gradients of queries and keys, of the mix those of the weights and of the values
        backward = scores * (trained[0] + trained[1]) + mix * ((trained[0] or trained[1]) + trained[2])

        def count(is_backward: bool) -> None:
            if is_backward:
                self._seen.backward_flops += backward
            elif not self._backward:  # else a checkpointed block is computed again
                self._seen.forward_flops += scores + mix

        return count

    def _keys_seen(self, mask: torch.Tensor) -> int:
        """`keys_seen`, once for all layers whose masks are equal: comparing takes a fraction of counting."""
        with unset_fake_temporarily():
            # dimensions that are one row shown many times: the row tells all
            mask = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride()[:-1])]
            for kept, width in self._masks:
                if kept.dtype == mask.dtype and torch.equal(kept, mask):
                    return width
            width = keys_seen(mask)
            self._masks = [*self._masks[1 - _MASKS_KEPT :], (mask.clone(), width)]
        return width

    def _use(self, factors: tuple[Any, ...], flops: int, grouped: bool) -> None:
        for factor in factors:
            origins = self._origins(factor)
            total = sum(self._sizes[name] for name in origins)
            for name in origins:
                self._seen.used[name] = self._seen.used.get(name, 0) + flops * self._sizes[name] // total
                if grouped or factor.numel() * self._stacks.get(name, 0) == self._sizes[name]:  # one of a stack
                    self._seen.grouped.add(name)
                if self._values.routed_tokens is not None:
                    self._seen.routed.setdefault(name, self._values.routed_tokens)

    def _origins(self, tensor: Any) -> tuple[str, ...]:
        """The parameters that a tensor is made of and of nothing else."""
        name = self._names.get(tensor.untyped_storage()._cdata)
        if name is not None:
            return (name,)
        return tensor.__dict__.get("_flopsfit_origins", ())

    def _pass_on(self, operation: Any, args: Any, out: Any) -> None:
        """A cast, scaled or joined weight is still that weight; matrices picked from a stack are its matrices."""
        if not isinstance(out, FakeTensor) or out.ndim < 2 or out.untyped_storage()._cdata in self._names:
            return
        tensors = args[0] if args and isinstance(args[0], (list, tuple)) else args
        weights = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        origins = tuple(dict.fromkeys(name for weight in weights for name in self._origins(weight)))
        if not origins:
            return
        size = sum(self._sizes[name] for name in origins)
        if operation is _aten.index.Tensor and args[0].ndim >= 3:
            self._seen.grouped.update(origins)
        elif out.numel() != size or any(
            weight.numel() > max(out.shape) for weight in weights if not self._origins(weight)
        ):
            return
        vars(out)["_flopsfit_origins"] = origins


class InBlocks:
    """Knows whether one of some modules is running.

    Attributes:
        inside: Whether one is.
        input_bytes: Of the first tensor that the first of them was given.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.inside, self.input_bytes = False, 0
        self._handles = [block.register_forward_pre_hook(self._enter) for block in blocks]
        self._handles += [block.register_forward_hook(self._leave) for block in blocks]

    def _enter(self, _block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.inside = True
        if not self.input_bytes and inputs and isinstance(inputs[0], torch.Tensor):
            self.input_bytes = inputs[0].numel() * inputs[0].element_size()

    def _leave(self, _block: nn.Module, _inputs: Any, _output: Any) -> None:
        self.inside = False

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


@contextlib.contextmanager
def _formatted_by_value() -> Iterator[None]:
    """A number in a text is its value, as of a tensor with memory: a module may be looked up by its name."""
    original = torch.Tensor.__format__

    def formatted(self: torch.Tensor, format_spec: str) -> str:
        fake = self.ndim == 0 and isinstance(self, FakeTensor)
        return format(self.item(), format_spec) if fake else original(self, format_spec)

    torch.Tensor.__format__ = formatted
    try:
        yield
    finally:
        torch.Tensor.__format__ = original


def _is_spread(factor: Any, out: Any) -> bool:
    """Whether each element of a factor meets several of the other's."""
    if not isinstance(factor, torch.Tensor):
        return False
    own = math.prod(size for size, stride in zip(factor.shape, factor.stride(), strict=True) if stride != 0)
    return own < out.numel()
