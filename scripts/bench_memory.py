"""Peak memory by others' formulas and by ours, beside what was published: errors side by side.

The published numbers are those of DeepSpeedExamples, training/bf16_master_weight/README.md (H100, ZeRO-3 on 4 GPUs,
sequence 512; "GB" there are GiB). `flopsfit_ds.simulate` runs the engine that is installed here, with that example's
configuration, on fake tensors. One setting is not the example's: `memory_efficient_linear` is off, because up to
deepspeedai/DeepSpeed#8189 it had no effect on a model that was built before `deepspeed.initialize`, and then PyTorch's
own linear layers hold every gathered weight until the backward pass. With the setting on, the installed engine needs
7.9 GiB less for 6.86 B parameters without checkpointing.

    python scripts/bench_memory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory.margin import workspace_bytes
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.case import Case

GIB = 2**30
SEQUENCE = 512


class _PostNormBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(width, heads, batch_first=True)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first_norm(x + self.mix(x, x, x)[0])
        return self.second_norm(x + self.narrow(F.gelu(self.widen(x))))


class _Encoder(nn.Module):
    """The example's model: learned positions, post-norm blocks with biases, an output layer with bias."""

    def __init__(self, layers: int, width: int, heads: int, vocab: int, recompute: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(SEQUENCE, width)
        self.blocks = nn.ModuleList(_PostNormBlock(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocab)
        self.recompute = recompute

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
        x = self.tokens(ids) + self.positions(places)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(x)


@dataclass
class PublishedCase:
    """The example's training step; its logits outlive the step, as they do in the example's loop."""

    layers: int
    width: int
    heads: int
    vocab: int
    autocast: bool = False
    draws_weights_in_constructors: bool = False

    def build_model(self, activation_checkpointing: bool) -> nn.Module:
        """In bf16, as the engine would cast it before it reaches the GPU."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return _Encoder(self.layers, self.width, self.heads, self.vocab, activation_checkpointing)
        finally:
            torch.set_default_dtype(default)

    def batch(self, num_sequences: int) -> Any:
        """Tokens and labels."""
        shape = (num_sequences, SEQUENCE)
        return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy, under autocast where the configuration asks for it."""
        ids, labels = batch
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            self._logits = model(ids)
            return F.cross_entropy(self._logits.view(-1, self._logits.shape[-1]), labels.view(-1))

    @property
    def optimizer(self) -> None:
        """AdamW."""
        return None

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The example's FusedAdam keeps the same states."""
        return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


@dataclass(frozen=True)
class Published:
    """One row of the example's tables.

    Attributes:
        name: Of the row.
        model: 6.86 B or 254 M parameters.
        micro_batch: Sequences a GPU.
        checkpointing: Activations recomputed.
        low_precision: bf16 master weights, gradients and optimizer states.
        peak_gib: Published peak.
        allocated_gib: Published, after a step.
    """

    name: str
    model: str
    micro_batch: int
    checkpointing: bool
    low_precision: bool
    peak_gib: float
    allocated_gib: float


MODELS = {"6.86B": PublishedCase(32, 4096, 32, 50257), "254M": PublishedCase(12, 1024, 16, 50000)}
PUBLISHED = (
    Published("6.86B ckpt, fp32 master", "6.86B", 1, True, False, 31.38, 25.74),
    Published("6.86B ckpt, bf16 master", "6.86B", 1, True, True, 18.93, 16.17),
    Published("6.86B, fp32 master", "6.86B", 1, False, False, 41.28, 25.74),
    Published("6.86B, bf16 master", "6.86B", 1, False, True, 33.20, 16.17),
    Published("254M, fp32 master", "254M", 4, False, False, 3.57, 1.29),
    Published("254M, bf16 master", "254M", 4, False, True, 4.44, 0.94),
)


def published_config(row: Published) -> dict[str, Any]:
    """The example's DeepSpeed configuration."""
    config: dict[str, Any] = {
        "train_batch_size": 4 * row.micro_batch,
        "train_micro_batch_size_per_gpu": row.micro_batch,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,
        },
    }
    if row.low_precision:
        config["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
        config["torch_autocast"] = {"enabled": True, "dtype": "torch.bfloat16"}
    return config


def simulate_published(row: Published, simulator: Simulator) -> tuple[float, float, float]:
    """Simulated GiB: peak, allocated after a step (with cuBLAS workspaces in both), and the seconds it took."""
    cluster = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=4)
    case: Case = replace(MODELS[row.model], autocast=row.low_precision)
    rank = simulator.rank(case, published_config(row), 0, 4, row.checkpointing, cluster)
    workspaces = workspace_bytes(cluster)
    return (rank.peak_bytes + workspaces) / GIB, (rank.end_bytes + workspaces) / GIB, rank.seconds


def deepspeed_estimate_gib(case: PublishedCase) -> float:
    """DeepSpeed's own `estimate_zero3_model_states_mem_needs`, without offload, in GiB."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    with torch.device("meta"):
        model = case.build_model(False)
    total = sum(parameter.numel() for parameter in model.parameters())
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    _, gpu_bytes, _ = estimate_zero3_model_states_mem_needs(
        total, largest, num_gpus_per_node=4, num_nodes=1, cpu_offload=False, cpu_offload_params=False, zero_init=True
    )
    return gpu_bytes / GIB


def formula_gib(case: PublishedCase, row: Published, bytes_per_parameter: int) -> float:
    """Bytes a parameter over the GPUs, plus the activations of Korthikanti et al. (2022, equation 2)."""
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in case.build_model(False).parameters())
    tokens = SEQUENCE * row.micro_batch
    layer = tokens * case.width * (34 + 5 * case.heads * SEQUENCE / case.width)
    activations = 2 * tokens * case.width * case.layers + layer if row.checkpointing else layer * case.layers
    return (total * bytes_per_parameter / 4 + activations) / GIB


def main() -> None:
    """Print the table; with --json write it too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    print(
        f"{'case':26}{'published':>10}{'DeepSpeed':>16}{'16 B + act.':>16}{'18 B + act.':>16}{'simulated':>16}{'s':>6}"
    )
    with Simulator() as simulator, ThreadPoolExecutor(len(PUBLISHED)) as threads:
        simulated = threads.map(lambda row: simulate_published(row, simulator), PUBLISHED)
        for row, (peak, allocated, seconds) in zip(PUBLISHED, simulated, strict=True):
            case = MODELS[row.model]
            guesses = [deepspeed_estimate_gib(case), formula_gib(case, row, 16), formula_gib(case, row, 18), peak]
            cells = "".join(f"{guess:8.2f} {guess / row.peak_gib - 1:+7.1%}" for guess in guesses)
            print(f"{row.name:26}{row.peak_gib:10.2f}{cells}{seconds:6.0f}", flush=True)
            results.append(asdict(row) | {"simulated_peak_gib": peak, "simulated_allocated_gib": allocated})
    print("\nallocated after a step, published and simulated (GiB):")
    for result in results:
        error = result["simulated_allocated_gib"] / result["allocated_gib"] - 1
        print(f"{result['name']:26}{result['allocated_gib']:8.2f}{result['simulated_allocated_gib']:8.2f} {error:+.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    import bench_memory  # under its own name, so that the simulation's process finds the case

    bench_memory.main()
