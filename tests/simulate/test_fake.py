"""Fake operations from memory: the same tensors as PyTorch's own fake mode makes, without asking it again."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._stats import simple_call_counter

from flopsfit_ds.simulate.tensors.fake import FakeOperations


class Quick(TorchDispatchMode):
    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.operations = FakeOperations(fake)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operations.run(func, args, kwargs or {})


def described(tensors: list[torch.Tensor]) -> list[tuple[Any, ...]]:
    """Of each tensor all that memory depends on, and the first of them that it shares its storage with."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    return [
        (
            type(t),
            t.dtype,
            t.shape,
            t.stride(),
            t.storage_offset(),
            t.device,
            t.untyped_storage().nbytes(),
            torch._C._dispatch_key_set(t),
            storages.index(storage),
        )
        for t, storage in zip(tensors, storages, strict=True)
    ]


def many_operations() -> list[torch.Tensor]:
    """Views, operations in place, results handed in, several results, scalars that differ in type only."""
    flat = torch.empty(60)
    x = flat[12:36].view(2, 3, 4)
    whole = torch.ones(3, dtype=torch.int64)
    made = [flat, x, x.transpose(1, 2), x[1], x.split(2, dim=2)[1], x.reshape(-1, 2), x.to(torch.bfloat16), x.clone()]
    made += [x.add_(1.0), torch.add(x, x, out=torch.empty(2, 3, 4)), whole + 1, whole + 1.0, torch.cat([x, x], 1)]
    made += [*torch.max(x, dim=1), *torch._foreach_add([x, whole], 1), x.unsqueeze(0).expand(5, 2, 3, 4)]
    layer = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.GELU())
    out = layer(x.detach().clone().requires_grad_())
    torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.zeros(6, dtype=torch.int64)).backward()
    made += [out, *layer.parameters(), *(p.grad for p in layer.parameters() if p.grad is not None)]
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=True)
    optimizer.step()
    return made + [value for state in optimizer.state.values() for value in state.values()]


def questions_to_pytorch() -> int:
    return simple_call_counter.get("FakeTensorMode.__torch_dispatch__", 0)


def test_what_is_remembered_is_what_pytorch_makes():
    start = questions_to_pytorch()
    with FakeTensorMode():
        expected = described(many_operations())
    plain = questions_to_pytorch() - start
    with FakeTensorMode() as fake, Quick(fake):
        assert described(many_operations()) == expected
        start = questions_to_pytorch()
        assert described(many_operations()) == expected
    quick = questions_to_pytorch() - start
    assert all(issubclass(kind, FakeTensor) for kind, *_ in expected)
    assert 0 < quick < plain / 4, f"PyTorch was asked {quick} times where {plain} questions had an answer"
