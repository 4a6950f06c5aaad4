"""Tokenising: `flopsfit-ds data prepare` beside the tokenizers library alone, on the same documents and cores.

The library is given all documents as strings in memory, in batches, by threads of its own; the command reads JSON lines
and writes ids, ends of documents and a manifest. Time by the wall and in CPU seconds; memory of the command and of its
workers.

Usage: python scripts/bench_data.py [--megabytes 100] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from flopsfit_ds.data.texts import stdlib_files

_VOCABULARY = 16_384
_TRAINED_ON_BYTES = 4_000_000  # of the standard library's source: seconds
_DOCUMENT_CHARACTERS = 4_000  # a page of the web
_LOOK_SECONDS = 0.05

SPEC = """\
name: bench
output_root: {folder}
model: {{vocab_size: {vocabulary}, context_length: 128, head_dim: 8}}
data: {{source: jsonl, paths: [documents.jsonl], tokenizer: tokenizer.json, heldout_tokens: 8192}}
design: {{method: points, points: [{{num_params: 1M, num_tokens: 1M}}]}}
training: {{global_batch_tokens: 1024, precision: fp32, learning_rates: [0.01]}}
hardware: {{device: cpu, gpus_per_node: 1}}
"""
ALONE = """
import json, sys, time, resource
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
documents = [json.loads(line)["text"] for line in open(sys.argv[2])]
began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
count = 0
for start in range(0, len(documents), 1000):
    count += sum(len(e) for e in tokenizer.encode_batch_fast(documents[start : start + 1000]))
now = resource.getrusage(resource.RUSAGE_SELF)
cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
print(json.dumps([count, time.perf_counter() - began, cpu]))
"""


def write_documents(folder: Path, num_bytes: int) -> None:
    """A tokenizer, and JSON lines of so many bytes: the standard library's source over and over, never cut alike."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = "".join(path.read_text(errors="ignore") for _, path in stdlib_files())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, show_progress=False)
    tokenizer.train_from_iterator([text[:_TRAINED_ON_BYTES]], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    with (folder / "documents.jsonl").open("w") as stream:
        written = start = 0
        while written < num_bytes:
            document = text[start : start + _DOCUMENT_CHARACTERS]
            start = (start + _DOCUMENT_CHARACTERS + 1) % (len(text) - _DOCUMENT_CHARACTERS)
            written += stream.write(json.dumps({"text": document}) + "\n")


def memory_of(process: psutil.Process) -> int:
    """Resident bytes of a process and all that it started, shared pages counted once for each."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder, options.megabytes * 10**6)
        (folder / "spec.yaml").write_text(SPEC.format(folder=folder / "outputs", vocabulary=_VOCABULARY))
        megabytes = (folder / "documents.jsonl").stat().st_size / 1e6
        environment = {**os.environ, "RAYON_NUM_THREADS": str(options.workers), "TOKENIZERS_PARALLELISM": "true"}
        alone = [sys.executable, "-c", ALONE, str(folder / "tokenizer.json"), str(folder / "documents.jsonl")]
        told = subprocess.run(alone, env=environment, check=True, capture_output=True, text=True).stdout
        count, wall, cpu = json.loads(told)
        print(f"{megabytes:.0f} MB of JSON lines, {count:,} ids, {options.workers} workers")
        print(f"library alone   {megabytes / wall:6.2f} MB/s   {cpu:7.1f} CPU s")
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "flopsfit_ds.cli", "data", "prepare", str(folder / "spec.yaml")]
        process = subprocess.Popen([*command, f"--workers={options.workers}"], stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(psutil.Process(process.pid)))
            time.sleep(_LOOK_SECONDS)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"data prepare    {megabytes / took:6.2f} MB/s   {used:7.1f} CPU s   peak {peak / 1e6:.0f} MB")
        print(f"ratio of speeds {wall / took:.2f} by the wall, {cpu / used:.2f} by CPU seconds")
        (written,) = (folder / "outputs" / "bench" / "data").glob("*.bin")
        assert written.stat().st_size == 2 * count, "not the library's ids"


if __name__ == "__main__":
    main()
