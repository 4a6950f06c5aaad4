"""Counts live tensor memory operation by operation, on fake and on real tensors alike.

Every storage that an operation returns is counted from then until it is freed, rounded up as PyTorch's CUDA allocator
rounds. Allocations carry what is known of them (phase, operation, module), categories may be given later, and the
moment of the peak is replayed from the log: so a breakdown always sums to the peak.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_ROUND_BYTES = 512  # kMinBlockSize of c10/cuda/CUDACachingAllocator.cpp


@dataclass(slots=True)
class Allocation:
    """One storage.

    Attributes:
        num_bytes: Rounded size.
        phase: Phase in which it was made.
        operation: Operation that returned it.
        module: Innermost module at work, or the module whose forward pass made the autograd node at work.
        recorded: Made while autograd records: in the forward pass, or when that is run again under checkpointing.
        category: What it holds; None until known.
    """

    num_bytes: int
    phase: str
    operation: str
    module: str
    recorded: bool
    category: str | None


@dataclass(frozen=True)
class Peak:
    """The most that was live at once within some phases.

    Attributes:
        num_bytes: How much.
        phase: When.
        operation: The operation that reached it.
        module: The module it belongs to.
        live: What was live then.
    """

    num_bytes: int
    phase: str
    operation: str
    module: str
    live: tuple[Allocation, ...]


class Ledger:
    """What was made and freed on one kind of device."""

    def __init__(self) -> None:
        self.live_bytes = 0
        self.allocations: list[Allocation] = []
        self.numbers: dict[int, int] = {}  # address of a live storage to its allocation's number, from 1
        self._events: list[int] = []  # +number of an allocation made, -number of one freed
        self._marks: list[tuple[int, str]] = [(0, "start")]

    def begin(self, phase: str) -> None:
        """From here on peaks belong to this phase."""
        self._marks.append((len(self._events), phase))

    def add(self, storage: torch.UntypedStorage, allocation: Allocation) -> None:
        """Count a storage until it is freed."""
        self.allocations.append(allocation)
        number = len(self.allocations)
        address = storage._cdata
        self.numbers[address] = number
        self._events.append(number)
        self.live_bytes += allocation.num_bytes
        weakref.finalize(storage, self._free, address, number)

    def find(self, tensor: torch.Tensor) -> Allocation | None:
        """The live allocation behind a tensor."""
        number = self.numbers.get(tensor.untyped_storage()._cdata)
        return self.allocations[number - 1] if number else None

    def phase_peaks(self) -> list[Peak]:
        """The peak of every phase, in order of time."""
        bounds = [*self._marks, (len(self._events), "end")]
        current, best = 0, []
        for (first, phase), (last, _) in itertools.pairwise(bounds):
            peak, at = current, first
            for position in range(first, last):
                event = self._events[position]
                size = self.allocations[abs(event) - 1].num_bytes
                current += size if event > 0 else -size
                if current > peak:
                    peak, at = current, position + 1
            best.append((peak, phase, at))
        return [self._peak(*entry) for entry in best]

    def _peak(self, num_bytes: int, phase: str, position: int) -> Peak:
        live: set[int] = set()
        for event in self._events[:position]:
            if event > 0:
                live.add(event)
            else:
                live.discard(-event)
        last = self.allocations[abs(self._events[position - 1]) - 1] if position else None
        allocations = tuple(self.allocations[number - 1] for number in sorted(live))
        return Peak(num_bytes, phase, last.operation if last else "", last.module if last else "", allocations)

    def _free(self, address: int, number: int) -> None:
        del self.numbers[address]
        self._events.append(-number)
        self.live_bytes -= self.allocations[number - 1].num_bytes


class LiveMemory(TorchDispatchMode):
    """Counts device and host, as a context manager around everything that allocates.

    Args:
        device_type: `torch.device(...).type` of the device; where it is `cpu`, host and device are one.
        run: Runs an operation, given its arguments and keyword arguments; without it, PyTorch does.
    """

    def __init__(self, device_type: str, run: Callable[[Any, Any, Any], Any] | None = None) -> None:
        super().__init__()
        self._run = run or _run
        self.device = Ledger()
        self.host = self.device if device_type == "cpu" else Ledger()
        self.modules = ModuleTrail()
        self._ledgers = {"cpu": self.host, device_type: self.device}
        self._phase = "start"
        self._scope: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns; make up a value where one is read out of a fake tensor.

        Not for a module's forward pass, whose way may depend on it: there PyTorch raises, unless the value is known.
        """
        reads_value = func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor)
        if reads_value and not self.modules.inside:
            return _plausible_value(args[0])
        out = self._run(func, args, kwargs or {})
        if isinstance(out, torch.Tensor):
            self._see(out, func, args)
        elif isinstance(out, (tuple, list)):
            for tensor in tree_iter(out):
                if isinstance(tensor, torch.Tensor):
                    self._see(tensor, func, args)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and keeping the compiler out costs time at every operation

    def begin(self, phase: str) -> None:
        """From here on allocations and peaks belong to this phase."""
        self._phase = phase
        for ledger in {id(ledger): ledger for ledger in self._ledgers.values()}.values():
            ledger.begin(phase)

    @contextlib.contextmanager
    def scope(self, category: str) -> Iterator[None]:
        """Allocations inside are of this category, unless `label` says otherwise later."""
        self._scope.append(category)
        try:
            yield
        finally:
            self._scope.remove(category)

    def open_scope(self, category: str) -> None:
        """Like `scope`, to be closed from elsewhere."""
        self._scope.append(category)

    def close_scope(self, category: str) -> None:
        """End all open scopes of that category; none is fine."""
        self._scope = [entry for entry in self._scope if entry != category]

    def label(self, tensor: torch.Tensor, category: str) -> None:
        """Say what the storage of a tensor holds; counts the storage where it was made out of sight."""
        self._see(tensor, "outside", ())
        allocation = self._find(tensor)
        if allocation is not None:
            allocation.category = category

    def category_of(self, tensor: torch.Tensor) -> str | None:
        """What the storage of a tensor holds, as far as known."""
        allocation = self._find(tensor)
        return allocation.category if allocation else None

    def _find(self, tensor: torch.Tensor) -> Allocation | None:
        ledger = self._ledgers.get(tensor.device.type)
        return ledger.find(tensor) if ledger else None

    def _see(self, tensor: torch.Tensor, operation: Any, args: Any) -> None:
        ledger = self._ledgers.get(tensor.device.type)
        if ledger is None:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in ledger.numbers:
            return
        num_bytes = -(-storage.nbytes() // _ROUND_BYTES) * _ROUND_BYTES
        if num_bytes == 0:
            return
        category = self._scope[-1] if self._scope else None
        if operation is torch.ops.aten._to_copy.default and self._is_weight(args[0]):
            category = "gathered_parameters"  # autocast's copy of a weight
        module, recorded = self.modules.current(), self.modules.inside or torch.is_grad_enabled()
        ledger.add(storage, Allocation(num_bytes, self._phase, str(operation), module, recorded, category))

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return self.category_of(tensor) in ("parameters", "gathered_parameters")


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    return operation(*args, **kwargs)


def _plausible_value(tensor: torch.Tensor) -> float | int | bool:
    """DeepSpeed reads flags of overflow and norms of gradients; a fake tensor has no values: 1.0, False or 0."""
    if tensor.is_floating_point():
        return 1.0
    return False if tensor.dtype == torch.bool else 0


def _sequence_number() -> int:
    """Number that autograd gives its next node."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


class ModuleTrail:
    """Which module is at work: by forward hooks, and in the backward pass by the numbers of autograd's nodes."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._starts: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def watch(self, model: torch.nn.Module) -> Iterator[None]:
        """Follow a model's modules."""
        self._names = {id(module): name or "model" for name, module in model.named_modules()}
        before = torch.nn.modules.module.register_module_forward_pre_hook(self._enter)
        after = torch.nn.modules.module.register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    @property
    def inside(self) -> bool:
        """Whether a module's forward pass runs, for the first time or again under checkpointing."""
        return bool(self._stack)

    def restart(self) -> None:
        """Forget the nodes of an earlier forward pass."""
        self._starts.clear()

    def current(self) -> str:
        """Name of the module at work; empty outside all."""
        if self._stack:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        return self._module_of(node._sequence_nr())

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        name = self._names.get(id(module))
        if name is not None:
            self._stack.append(name)
            self._starts.append((_sequence_number(), name))

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._names and self._stack:
            self._stack.pop()
            self._starts.append((_sequence_number(), self._stack[-1] if self._stack else "loss"))

    def _module_of(self, sequence_number: int) -> str:
        index = bisect.bisect_right(self._starts, sequence_number, key=lambda start: start[0])
        return self._starts[index - 1][1] if index else ""
