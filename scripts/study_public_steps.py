"""Public training runs beside what is planned for them: step times, half of them to set constants by, and who fits.

    git clone --depth 1 https://github.com/mosaicml/llm-foundry
    python scripts/study_public_steps.py llm-foundry/scripts/train/benchmarking/README.md

Rows are those of llm-foundry's table of MPT models (README.md of its benchmarks, last changed 2024-04-22), read from
the file, and of torchtitan's docs/performance.md (Llama 3 on 64 A100, 2024). Left out are the seven rows in fp8. Every
second row of a device, in the order of the file, sets the constants of `plan/step_time.py`; the others are held out.
MPT's layers have other parts than our decoder's, of the same sizes; its runs shard by FSDP and send in bf16.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy, profile_decoder
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.plan.layouts import Search
from flopsfit_ds.plan.step_time import step_seconds
from flopsfit_ds.spec import PlacementRules

_SHAPES = {
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16), "3b": (32, 2560, 20),
    "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64),
}  # fmt: skip
"""Layers, width and heads of MPT (scripts/train/yamls/pretrain of llm-foundry)."""
_VOCAB = 50368
_DEVICES = {"h100_80gb": "H100-SXM", "a100_80gb": "A100-SXM-80GB", "a100_40gb": "A100-SXM-40GB"}
_STAGES = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0}
_NODE_BANDWIDTH = {"h100_80gb": 50e9, "a100_80gb": 25e9, "a100_40gb": 25e9}
"""Bytes a second a GPU to other nodes: 3,200 and 1,600 Gbit/s for 8."""
_TITAN = (("8b", 8192, 64, 1, 2904, 0.568, False), ("70b", 8192, 64, 1, 331, 0.517, True))
"""torchtitan: model, tokens, GPUs, sequences a GPU, tokens a second a GPU, MFU, and whether all is recomputed."""
_TITAN_SHAPES = {
    "8b": ModelShape(32, 4096, 32, 8, 14336, 128256, 8192),
    "70b": ModelShape(80, 8192, 64, 8, 28672, 128256, 8192),
}


@dataclass(frozen=True)
class Row:
    """One public run.

    Attributes:
        name: Of the model.
        shape: As our decoder has it.
        gpus: Of the run.
        device: As the table calls it.
        micro_batch: Sequences a GPU at once.
        accumulation: Micro-batches a step.
        stage: The ZeRO stage that shards alike.
        checkpointing: Activations recomputed.
        seconds: Of a step, measured.
    """

    name: str
    shape: ModelShape
    gpus: int
    device: str
    micro_batch: int
    accumulation: int
    stage: int
    checkpointing: bool
    seconds: float


def rows_of_foundry(path: Path) -> Iterator[Row]:
    """All rows of the file in bf16 or fp16 on GPUs that are known."""
    names: list[str] = []
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "SeqLen (T)" in cells:
            names = cells
        if len(cells) != len(names) or cells[0] not in _SHAPES:
            continue
        row = dict(zip(names, cells, strict=True))
        if row["GPU"] not in _DEVICES or row["Precision"] not in ("amp_bf16", "amp_fp16", "bf16"):
            continue
        layers, width, heads = _SHAPES[row["Model"]]
        tokens, gpus, micro = int(row["SeqLen (T)"]), int(row["# GPUs"]), int(row["MicroBatchSize"])
        inner = -(-width * 8 // 24) * 8
        shape = ModelShape(layers, width, heads, heads, inner, _VOCAB, tokens, tied_embeddings=True)
        batch = int(row["GlobalBatchSize (T)"])
        yield Row(
            row["Model"], shape, gpus, row["GPU"], micro, max(1, round(batch / (gpus * micro * tokens))),
            _STAGES[row["Sharding Strategy"]], row["Activation Checkpointing"] == "True",
            batch / (float(row["Throughput (T/s/GPU)"]) * gpus),
        )  # fmt: skip


def rows_of_titan() -> Iterator[Row]:
    """Two rows of another trainer."""
    for name, tokens, gpus, micro, speed, _, recomputed in _TITAN:
        yield Row(
            f"titan {name}", _TITAN_SHAPES[name], gpus, "a100_80gb", micro, 1, 3, recomputed, micro * tokens / speed
        )


def ratio(row: Row) -> float:
    """Predicted over measured throughput."""
    profile, cluster = profile_decoder(row.shape, "bf16"), cluster_of(row)
    strategy = Strategy(row.stage, row.gpus, row.micro_batch, row.checkpointing, "none", "bf16", "bf16")  # pyright: ignore
    flops = training_flops_per_token(row.shape) * row.shape.context_length
    return row.seconds / step_seconds(profile, strategy, row.accumulation, flops, cluster)


def cluster_of(row: Row):
    """Nodes of 8 of the row's device."""
    return resolve_cluster(
        "bf16", device=_DEVICES[row.device], gpus_per_node=8, num_nodes=max(1, row.gpus // 8),
        inter_node_bandwidth=_NODE_BANDWIDTH[row.device],
    )  # fmt: skip


def fits(row: Row, *, communication: str, as_given: bool) -> bool:
    """Whether our recipe fits on the row's GPUs, at its micro-batch and checkpointing or at any."""
    rules = PlacementRules(
        num_gpus=(row.gpus,),
        offload="never",
        activation_checkpointing=("always" if row.checkpointing else "never") if as_given else "allowed",
        communication=communication,  # pyright: ignore[reportArgumentType]
    )
    batch = row.gpus * row.micro_batch * row.accumulation
    flops = training_flops_per_token(row.shape) * row.shape.context_length
    size = row.micro_batch if as_given else None
    search = Search(profile_decoder(row.shape, "bf16"), flops, batch, "bf16", cluster_of(row), rules, size)
    return bool(search.best_of_each_layout())


def spread(found: list[float]) -> str:
    """Median ratio, and the share within a tenth and a quarter of 1."""
    near = [sum(abs(each - 1) <= width for each in found) / len(found) for width in (0.1, 0.25)]
    return f"{len(found):4}  {statistics.median(found):.2f}  {near[0]:.0%}  {near[1]:.0%}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", type=Path)
    rows = [*rows_of_foundry(parser.parse_args().readme), *rows_of_titan()]
    print("predicted over measured throughput\n                     rows  median  within 10%  within 25%")
    for device in _DEVICES:
        own = [ratio(row) for row in rows if row.device == device]
        for half, found in (("setting", own[::2]), ("held out", own[1::2])):
            print(f"{_DEVICES[device]:14}{half:9}{spread(found)}")
    for name in dict.fromkeys(row.name for row in rows):
        print(f"{name:23}{spread([ratio(row) for row in rows if row.name == name])}")
    print(f"\n{len(rows)} runs that fitted their GPUs; by our recipe fit:")
    for communication in ("fp32", "bf16"):
        for as_given, words in ((True, "at their micro-batch and checkpointing"), (False, "at any of both")):
            count = sum(fits(row, communication=communication, as_given=as_given) for row in rows)
            print(f"  {count:4} {words}, communication in {communication}")


if __name__ == "__main__":
    main()
