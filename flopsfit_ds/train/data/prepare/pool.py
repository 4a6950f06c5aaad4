"""A corpus as one file of ids: pieces that are there already are kept, the rest is read by several processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from flopsfit_ds.base import errors
from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import json_converter
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.sources.reading import Piece, source_of
from flopsfit_ds.train.data.prepare.encode import Encoder
from flopsfit_ds.train.data.prepare.parts import Joined, Part, join, part_at, remove, write_part
from flopsfit_ds.train.data.prepare.vocabulary import check_vocabulary
from flopsfit_ds.train.data.prepare.worker import Job, place_of

Progress = Callable[[int, int], None]
"""Told of bytes that are done, and of all."""

_WORTH_A_PROCESS = 1 << 23
"""8 MiB of text take longer to tokenise (about 2 s) than a process to start (0.3 s)."""


def write_corpus(
    corpus: Corpus,
    path: Path,
    dtype: str,
    vocab_size: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Joined:
    """Write all documents of a corpus as one file of ids.

    Pieces are written beside the file until all are there: killed at any moment, the next call goes on with what lacks.

    Args:
        corpus: With a way of reading.
        path: The file.
        dtype: Of an id, little-endian.
        vocab_size: Of the model.
        workers: Processes; without it as many as this process may use cores.
        progress: Told how far it is.

    Raises:
        DataError: A document cannot be read, an id is beyond the vocabulary, or another process prepares the same.
        SweepFolderError: The folder cannot be written.
    """
    assert corpus.reading is not None
    pieces = source_of(corpus.reading.kind).split([Path(name) for name in corpus.files])
    cut = hashlib.sha256(repr(pieces).encode()).hexdigest()[:8]
    folder = path.with_name(f"{path.stem}-parts-{cut}")
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder, path):
        places = [place_of(folder, number) for number in range(len(pieces))]
        parts = dict(_found(places))
        total = sum(piece.num_bytes for piece in pieces)
        tell = progress or (lambda done, total: None)

        def note(number: int, part: Part) -> None:
            parts[number] = part
            tell(sum(pieces[each].num_bytes for each in parts), total)

        tell(sum(pieces[each].num_bytes for each in parts), total)
        missing = [number for number in range(len(pieces)) if number not in parts]
        check_vocabulary(corpus, pieces, vocab_size)
        size = sum(pieces[number].num_bytes for number in missing)
        count = min(workers or len(os.sched_getaffinity(0)), len(missing))
        if count > 1 and size > _WORTH_A_PROCESS and corpus.reading.holds != "bytes":
            _by_workers(Job(corpus, dtype, vocab_size, str(folder), os.getpid()), pieces, missing, count, note)
        elif missing:
            encoder = Encoder(corpus, dtype, vocab_size)
            for number in missing:
                note(number, write_part(encoder, pieces[number], places[number], lambda: None))
        joined = join(places, [parts[number] for number in range(len(pieces))], path, np.dtype(dtype).itemsize)
        remove(folder)
    return joined


def _found(places: Sequence[Path]) -> Iterator[tuple[int, Part]]:
    for number, place in enumerate(places):
        part = part_at(place)
        if part is not None:
            yield number, part


@contextmanager
def _held(folder: Path, path: Path) -> Iterator[None]:
    """Hold a folder of parts; the kernel lets go of it when this process ends."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path}: another process prepares it; wait for that, or end it") from None
        yield


def _by_workers(
    job: Job, pieces: Sequence[Piece], missing: Sequence[int], count: int, note: Callable[[int, Part], None]
) -> None:
    """Have pieces written by processes of their own, each told the next one as it has answered."""
    waiting = list(reversed(missing))
    answers: SimpleQueue[tuple[subprocess.Popen[str], str]] = SimpleQueue()
    workers = [_start(job, answers) for _ in range(count)]
    busy = {worker for worker in workers if _tell_next(worker, pieces, waiting)}
    try:
        while busy:
            worker, line = answers.get()
            if worker not in busy:
                continue
            if not line:
                raise DataError(
                    f"a process that reads the data ended with code {worker.wait()}; see the output above (memory?)"
                )
            answer = json.loads(line)
            if "error" in answer:
                kind, words = answer["error"]
                raise getattr(errors, kind, DataError)(words)
            note(answer["piece"], Part(**answer["part"]))
            if not _tell_next(worker, pieces, waiting):
                busy.discard(worker)
    finally:
        for worker in workers:
            with suppress(OSError, ValueError):
                worker.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            if worker in busy:
                worker.kill()
            worker.wait()


def _start(job: Job, answers: SimpleQueue[tuple[subprocess.Popen[str], str]]) -> subprocess.Popen[str]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-m", "flopsfit_ds.train.data.prepare.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    _write(worker, json_converter(Job).dump_json(job).decode())

    def listen() -> None:
        for line in worker.stdout or ():
            answers.put((worker, line))
        answers.put((worker, ""))

    threading.Thread(target=listen, name="flopsfit-ds prepare", daemon=True).start()
    return worker


def _tell_next(worker: subprocess.Popen[str], pieces: Sequence[Piece], waiting: list[int]) -> bool:
    """Give a worker the next piece; False where none is left."""
    if not waiting:
        return False
    number = waiting.pop()
    order: dict[str, Any] = {"number": number, "piece": asdict(pieces[number])}
    _write(worker, json.dumps(order))
    return True


def _write(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has ended, which its output tells
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
