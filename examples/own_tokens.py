"""Data of its own: whatever can be written as a file of token ids is a source."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flopsfit_ds import build_plan, load_spec

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


SPEC = f"""\
name: genes
model: {{vocab_size: {len(ALPHABET)}, context_length: 32, head_dim: 8}}
data: {{source: tokens, path: genes.bin, dtype: uint16, heldout_tokens: 8192}}
design: {{method: points, points: [{{num_params: 1k, num_tokens: 80k}}, {{num_params: 4k, num_tokens: 80k}}]}}
training: {{global_batch_tokens: 1024, precision: fp32, learning_rates: [0.01]}}
hardware: {{device: cpu, gpus_per_node: 1}}
"""


def write_study(folder: Path) -> Path:
    """Write a file of bases and a spec that names it; the path of the spec.

    Three bases in four are followed by the next one of the alphabet, the others by any of the rest: 0.837 nats a base.
    """
    random = np.random.default_rng(0)
    steps = random.choice(len(ALPHABET), size=(20, 10_000), p=[0.25 / 3, 0.75, 0.25 / 3, 0.25 / 3])
    genes = ("".join(ALPHABET[base] for base in np.cumsum(gene) % len(ALPHABET)) for gene in steps)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder / "genes.bin", genes)
    path = folder / "genes.yaml"
    path.write_text(SPEC)
    return path


if __name__ == "__main__":
    path = write_study(Path(sys.argv[1]))
    for run in build_plan(load_spec(path), spec_folder=path.parent).runs:
        print(run.label, run.num_params_total, run.num_tokens)
