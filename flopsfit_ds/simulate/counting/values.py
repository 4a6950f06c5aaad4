"""Tensors without weights, of which the values are known where they do not come from weights.

Masks, positions and whatever else a forward pass computes from shapes and inputs is computed; what weights have a part
in is only a shape. A choice among weights' values (the experts of a token) is drawn at random, so that control flow
that depends on a router goes some way; what depends on values in another manner cannot be looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from flopsfit_ds.simulate.tensors.fake import FakeOperations

_aten = torch.ops.aten
_LARGEST_KNOWN = 1 << 28
"""Elements of a result that is computed: a mask of 16,384 squared."""
_LARGEST_FILLED = 1 << 24
"""Elements of a tensor from a factory whose values are kept: more is a weight."""
_LARGEST_DRAWN = 1 << 12
"""Random numbers that a forward pass may decide by (dropping a layer); more are weights or noise."""
_LARGEST_CHOICE = 1 << 22
"""Elements that a choice is made among: a router's, not a vocabulary's."""
_SEED = 0  # any: what depends on a draw is told, not counted


class Cell:
    """What the views of one storage share.

    Attributes:
        lost: Whether something unknown was written into it.
        drawn: Whether the values stand for a choice among weights' values.
        given: Whether the values come from the batch: another batch has others.
    """

    __slots__ = ("drawn", "given", "lost")

    def __init__(self, drawn: bool, given: bool = False) -> None:
        self.lost = False
        self.drawn = drawn
        self.given = given


def known_value(tensor: Any) -> torch.Tensor | None:
    """The values of a tensor; None where they are not known."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    found = vars(tensor).get("_flopsfit_known")
    return None if found is None or found[1].lost else found[0]


def forget_value(tensor: torch.Tensor) -> None:
    """Whatever was known of a tensor and its views is known no more: it is a weight."""
    found = vars(tensor).get("_flopsfit_known")
    if found is not None:
        found[1].lost = True
        del vars(tensor)["_flopsfit_known"]


class Values(TorchDispatchMode):
    """Runs operations on fake tensors and carries along what is known of their values.

    Attributes:
        decided: Whether the way of the forward pass depended on a choice that was drawn.
        decided_by_batch: Whether it depended on values of the batch.
        routed_tokens: Elements and last dimension of what the latest choice was made among.
    """

    def __init__(self, mode: FakeTensorMode, seen: Callable[..., None], one_for_all: bool = False) -> None:
        """Carry values over fake tensors.

        Args:
            mode: The fake tensors'.
            seen: `seen(operation, args, kwargs, out)`, called after every operation.
            one_for_all: All choices fall on the first; otherwise they are drawn at random.
        """
        super().__init__()
        self._mode = mode
        self._fakes = FakeOperations(mode)
        self._seen = seen
        self._one_for_all = one_for_all
        self._draws = torch.Generator().manual_seed(_SEED)
        self.decided = False
        self.decided_by_batch = False
        self.routed_tokens: tuple[int, int] | None = None

    def fake(self, tensor: torch.Tensor, given: bool = False) -> FakeTensor:
        """A fake tensor of known values; `given` says that they are a batch's."""
        with self._mode:
            made = self._mode.from_tensor(tensor)
        _set_known(made, tensor, Cell(False, given))
        return made

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.prim.device.default:
            return args[0].device
        if operation in _LIFTS:
            return self.fake(args[0])
        tensors = _tensors(args, kwargs)
        if any(not isinstance(tensor, FakeTensor) for tensor in tensors):  # made before the look: of known values
            args, kwargs = tree_map_only(torch.Tensor, self._adopt, (args, kwargs))
            tensors = _tensors(args, kwargs)
        values = [known_value(tensor) for tensor in tensors]
        if all(value is not None for value in values):
            known, out = self._compute(operation, args, kwargs, tensors)
            if known:
                return out
        else:
            args, kwargs = self._resolve_indices(operation, args, kwargs)
        _lose_written(operation, args)
        out = self._fakes.run(operation, args, kwargs)
        if operation in _CHOICES:
            self._choose(operation, args, kwargs, out)
        self._seen(operation, args, kwargs, out)
        return out

    def _adopt(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        with unset_fake_temporarily():
            copy = tensor.detach().clone()
        return self.fake(copy)

    def _compute(self, operation: Any, args: Any, kwargs: Any, tensors: list[Any]) -> tuple[bool, Any]:
        """Run an operation of which all is known; False where its result is not to be known."""
        random = torch.Tag.nondeterministic_seeded in operation.tags
        if random and max(_elements(args, tensors), default=0) > _LARGEST_DRAWN:
            return False, None
        if not tensors and max(_elements(args, tensors), default=0) > _LARGEST_FILLED:
            return False, None
        cells = {
            found[0].untyped_storage()._cdata: found[1]
            for found in (vars(tensor)["_flopsfit_known"] for tensor in tensors)
        }
        joined = Cell(any(cell.drawn for cell in cells.values()), any(cell.given for cell in cells.values()))
        values = tree_map_only(torch.Tensor, known_value, (args, kwargs))
        if any(broadcast > _LARGEST_KNOWN for broadcast in _elements(args, tensors)):
            return False, None
        with unset_fake_temporarily(), torch.random.fork_rng(devices=[], enabled=random):
            if random:
                # `torch.manual_seed` writes the stack out for each of three backends: a sixth of planning such a class
                torch.default_generator.manual_seed(int(torch.randint(1 << 30, (), generator=self._draws)))
            result = operation(*values[0], **values[1])
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            self._decide(joined)
            return True, result
        if any(tag in operation.tags for tag in _SHAPED_BY_VALUES):
            self._decide(joined)
            out = tree_map_only(torch.Tensor, self._mode.from_tensor, result)
        else:
            out = self._fakes.run(operation, args, kwargs)
        for made, value in zip(tree_leaves(out), tree_leaves(result), strict=True):
            if isinstance(made, FakeTensor) and known_value(made) is None:
                cell = cells.get(value.untyped_storage()._cdata) or Cell(joined.drawn, joined.given)
                _set_known(made, value, cell)
        return True, out

    def _resolve_indices(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Where a known mask picks from unknown values, the places that it picks."""
        if operation in _INDEXED and len(args) > 1:
            indices: list[Any] = []
            for index in args[1]:
                value = known_value(index) if index is not None else None
                if value is not None and value.dtype in (torch.bool, torch.uint8):
                    self._decide(vars(index)["_flopsfit_known"][1])
                    with unset_fake_temporarily():
                        picked = value.nonzero(as_tuple=True)
                    indices += [self.fake(places) for places in picked]
                else:
                    indices.append(index)
            return (args[0], indices, *args[2:]), kwargs
        return args, kwargs

    def _decide(self, cell: Cell) -> None:
        self.decided |= cell.drawn
        self.decided_by_batch |= cell.given

    def _choose(self, operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Draw the places that a choice among unknown values falls on."""
        among = args[0]
        if among.ndim == 0 or known_value(among) is not None:
            return
        places = out if isinstance(out, torch.Tensor) else out[1]
        dim = _CHOICES[operation](args, kwargs)
        if dim is None or among.numel() > _LARGEST_CHOICE:
            return
        self.routed_tokens = (among.numel(), among.shape[dim])
        with unset_fake_temporarily():
            logits = torch.zeros(among.shape) if self._one_for_all else torch.rand(among.shape, generator=self._draws)
            order = logits.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, _kept(places, among, dim))
            laid_out = torch.empty_strided(places.shape, places.stride(), dtype=torch.int64)
            _set_known(places, laid_out.copy_(order.reshape(places.shape)), Cell(True))


def _kept(places: torch.Tensor, among: torch.Tensor, dim: int) -> int:
    return places.numel() * among.shape[dim] // among.numel() or 1


def _set_known(tensor: Any, value: torch.Tensor, cell: Cell) -> None:
    vars(tensor)["_flopsfit_known"] = (value, cell)


def _tensors(args: Any, kwargs: Any) -> list[Any]:
    found: list[Any] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, torch.Tensor)]
    return found


def _elements(args: Any, tensors: list[Any]) -> list[int]:
    """Elements that a result may have: of the tensors, broadcast, or of the shape that a factory is given."""
    if tensors:
        try:
            return [torch.Size(torch.broadcast_shapes(*(tensor.shape for tensor in tensors))).numel()]
        except RuntimeError:
            return [tensor.numel() for tensor in tensors]
    shapes = [value for value in args if isinstance(value, (list, tuple))]
    return [torch.Size(shape).numel() for shape in shapes if all(isinstance(size, int) for size in shape)]


def _lose_written(operation: Any, args: Any) -> None:
    """A known tensor that something unknown is written into is known no more."""
    if not operation._schema.is_mutable:
        return
    for argument, value in zip(operation._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, FakeTensor):
                    forget_value(tensor)


def _dim_at(place: int, default: int | None) -> Callable[[Any, Any], int | None]:
    def dim(args: Any, kwargs: Any) -> int | None:
        value = args[place] if len(args) > place else kwargs.get("dim", default)
        return value

    return dim


_LIFTS = (_aten.lift_fresh.default, _aten.lift_fresh_copy.default, _aten.lift.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_SHAPED_BY_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_CHOICES: dict[Any, Callable[[Any, Any], int | None]] = {
    _aten.topk.default: _dim_at(2, -1),
    _aten.max.dim: _dim_at(1, -1),
    _aten.argmax.default: _dim_at(1, None),
    _aten.sort.default: _dim_at(1, -1),
    _aten.sort.stable: _dim_at(2, -1),
    _aten.argsort.default: _dim_at(1, -1),
    _aten.multinomial.default: lambda args, kwargs: -1,
}
