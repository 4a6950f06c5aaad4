"""Data of its own: whatever can be written as a file of token ids is a source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flopsfit_ds import build_plan
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.spec import validate_spec

ALPHABET = "ACGT"


def write_tokens(path: Path, sequences: Iterable[str]) -> int:
    """Write the ids of sequences as little-endian uint16, one after the other.

    Returns:
        Number of ids.
    """
    lookup = np.zeros(256, dtype="<u2")
    lookup[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))
    count = 0
    with path.open("wb") as stream:
        for sequence in sequences:
            ids = lookup[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
            stream.write(ids.tobytes())
            count += len(ids)
    return count


def plan(folder: Path) -> SweepPlan:
    """Write a file of random bases and plan a small study on it."""
    random = np.random.default_rng(0)
    genes = ("".join(random.choice(list(ALPHABET), 10_000)) for _ in range(20))
    write_tokens(folder / "genes.bin", genes)
    spec: dict[str, Any] = {
        "name": "genes",
        "model": {"vocab_size": len(ALPHABET), "context_length": 128, "head_dim": 16},
        "data": {"source": "tokens", "path": "genes.bin", "dtype": "uint16", "heldout_tokens": 8192},
        "design": {"compute_budgets": [1e11], "sizes_per_budget": 3},
        "training": {"global_batch_tokens": 1024, "precision": "fp32"},
        "hardware": {"device": "H100-SXM", "gpus_per_node": 1},
    }
    return build_plan(validate_spec(spec, "example"), spec_folder=folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for run in plan(Path(folder)).runs:
            print(run.label, run.num_params_total, run.num_tokens)
