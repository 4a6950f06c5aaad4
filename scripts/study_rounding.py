"""How far training drifts apart by rounding alone: gradients of a batch whole, and as the mean of those of its halves.

    python scripts/study_rounding.py 1600            steps

The two differ as one rank differs from two: by the order of sums. Beside each other: Mixtral, whose router sends a
token to one of four experts, as it is, with a larger epsilon of AdamW, and against itself with one weight moved by its
last bit; a dense Llama; and a mixture of the script's own in fp32 and fp64 (Mixtral rounds to fp32 inside). For each,
the gap of held-out losses, and the share of held-out tokens that a router sends to another expert. Needs transformers;
some minutes.
"""

from __future__ import annotations

import copy
import math
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

CONTEXT, BATCH, HELD_OUT, WIDTH = 32, 8, 256, 16
SHAPE = {
    "vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
}  # fmt: skip
SHOWN = (12, 50, 100, 200, 400, 800, 1600, 3200, 4800)


def mixture() -> nn.Module:
    """Four experts, of which a token takes one."""
    return hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, num_experts_per_tok=1, **SHAPE))


def dense() -> nn.Module:
    """The same without experts."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE))


class Routed(nn.Module):
    """A decoder whose feed-forward layers are four experts, of which a token takes one, in any precision throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256, bias=False)
        self.attention = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.routers = nn.ModuleList(nn.Linear(WIDTH, 4, bias=False) for _ in range(2))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(4, WIDTH, 2 * WIDTH) / 4) for _ in range(2))
        self.down = nn.ParameterList(nn.Parameter(torch.randn(4, 2 * WIDTH, WIDTH) / 6) for _ in range(2))
        self.chosen: list[torch.Tensor] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits; the experts of the last call stand in `chosen`."""
        x, mask = self.embedding(tokens), torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
        self.chosen = []
        for layer, attention in enumerate(self.attention):
            inner = self.norms[2 * layer](x)
            x = x + attention(inner, inner, inner, attn_mask=mask, need_weights=False)[0]
            inner = self.norms[2 * layer + 1](x)
            weight, chosen = self.routers[layer](inner).softmax(-1).max(-1)
            every = F.gelu(torch.einsum("btw,ewh->bteh", inner, self.up[layer]))
            every = torch.einsum("bteh,ehw->btew", every, self.down[layer])
            x = x + weight[..., None] * (every * F.one_hot(chosen, 4)[..., None]).sum(2)
            self.chosen.append(chosen)
        return self.head(x)


def windows() -> torch.Tensor:
    """Of the standard library's source, in bytes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[: 4000 * (CONTEXT + 1)]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(-1, CONTEXT + 1)


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    inputs = rows[:, :-1]
    logits = model(inputs) if isinstance(model, Routed) else model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: torch.Tensor, parts: int) -> None:
    """One update by the mean of the gradients of so many parts of a batch."""
    optimizer.zero_grad()
    sums: dict[str, torch.Tensor] = {}
    for part in rows.chunk(parts):
        model.zero_grad()
        loss_of(model, part).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums[name] + parameter.grad if name in sums else parameter.grad.clone()
    for name, parameter in model.named_parameters():
        parameter.grad = sums[name] / parts if name in sums else None
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def routes(model: nn.Module, rows: torch.Tensor) -> torch.Tensor | None:
    """The expert of each held-out token in each layer; None of a dense model."""
    if isinstance(model, Routed):
        model(rows[:, :-1])
        return torch.stack(model.chosen)
    if not hasattr(model.config, "num_local_experts"):
        return None
    scores = model(input_ids=rows[:, :-1], use_cache=False, output_router_logits=True).router_logits
    return torch.stack([layer.argmax(-1) for layer in scores])


def compare(
    build: Callable[[], nn.Module], steps: int, dtype: torch.dtype, epsilon: float, parts: int, moved: bool
) -> list[str]:
    """Gap of the losses and share of other experts, at each of the steps that are shown."""
    torch.manual_seed(0)
    one = build().to(dtype).train()
    other = copy.deepcopy(one)
    if moved:
        with torch.no_grad():
            weight = next(other.parameters())[ord(" ")]  # of the embedding
            weight[0] = torch.nextafter(weight[0], torch.tensor(math.inf, dtype=dtype))
    pair = [(one, 1), (other, parts)]
    kinds = [
        torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=epsilon, weight_decay=0.1)
        for model, _ in pair
    ]
    data = windows()
    held_out, data = data[-HELD_OUT:], data[:-HELD_OUT]
    order = torch.Generator().manual_seed(0)
    found = []
    for number in range(1, steps + 1):
        rows = data[torch.randint(0, len(data), (BATCH,), generator=order)]
        for (model, count), optimizer in zip(pair, kinds, strict=True):
            step(model, optimizer, rows, count)
        if number in SHOWN:
            with torch.no_grad():
                gap = abs(loss_of(one, held_out).item() - loss_of(other, held_out).item())
            here, there = routes(one, held_out), routes(other, held_out)
            changed = "" if here is None or there is None else f" ({(here != there).float().mean().item():.2%})"
            found.append(f"{gap:.1e}{changed}")
    return found


def main() -> None:
    """Print a row for each comparison."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1600
    torch.set_num_threads(1)
    cases = {
        "Mixtral, fp32": (mixture, torch.float32, 1e-8, 2, False),
        "Mixtral, fp32, epsilon 1e-3": (mixture, torch.float32, 1e-3, 2, False),
        "Mixtral, fp32, one weight's last bit": (mixture, torch.float32, 1e-8, 1, True),
        "Llama, fp32": (dense, torch.float32, 1e-8, 2, False),
        "own mixture, fp32": (Routed, torch.float32, 1e-8, 2, False),
        "own mixture, fp64": (Routed, torch.float64, 1e-8, 2, False),
    }
    shown = [str(each) for each in SHOWN if each <= steps]
    sys.stdout.write(f"| gap after steps | {' | '.join(shown)} |\n|{'---|' * (len(shown) + 1)}\n")
    for name, (build, dtype, epsilon, parts, moved) in cases.items():
        cells = compare(build, steps, dtype, epsilon, parts, moved)
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
